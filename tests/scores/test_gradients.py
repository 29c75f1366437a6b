"""Taylor, and what it says when gradients are missing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import scores


def test_taylor_is_the_loss_that_a_linear_model_loses(key: jax.Array):
    inputs = jax.random.normal(key, (3,))
    params = {"w": jnp.array([1.0, -2.0, 3.0])}

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        return jnp.dot(params["w"], inputs)

    found = scores.taylor(params, jax.grad(loss)(params))["w"]
    lost = [abs(loss(params) - loss({"w": params["w"].at[i].set(0.0)})) for i in range(3)]
    np.testing.assert_allclose(found, jnp.stack(lost), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_taylor_multiplies_low_precision_in_float32(dtype: Any):
    weights = {"w": jnp.array([1e-4, 1e-3], dtype)}
    found = scores.taylor(weights, weights)["w"]
    assert found.dtype == jnp.float32
    wide = weights["w"].astype(jnp.float32)
    np.testing.assert_array_equal(found, wide * wide)  # 1e-8 is 0 in float16


def test_taylor_takes_weights_and_gradients_of_different_types():
    found = scores.taylor({"w": jnp.ones(2)}, {"w": jnp.full(2, -3.0, jnp.bfloat16)})
    np.testing.assert_array_equal(found["w"], [3.0, 3.0])


def test_taylor_keeps_float64():
    with jax.enable_x64(True):
        found = scores.taylor({"w": jnp.ones(2)}, {"w": jnp.ones(2, jnp.float32)})
    assert found["w"].dtype == jnp.float64


def test_taylor_without_gradients_says_where_to_get_them():
    with pytest.raises(ValueError) as error:
        scores.taylor({"w": jnp.ones(2)}, None)
    assert str(error.value) == (
        "scores.taylor needs gradients, got grads=None. Compute them with "
        "jax.grad(loss)(params, ...) and pass scores.taylor(params, grads), or use a transform "
        "such as jaxprune.gradual, which hands the gradients of the step to its score."
    )


@pytest.mark.parametrize("absent", [None, optax.MaskedNode()])
def test_taylor_without_one_gradient_names_the_parameter(absent: Any):
    params = {"a": {"kernel": jnp.ones(2)}, "b": jnp.ones(2)}
    with pytest.raises(ValueError) as error:
        scores.taylor(params, {"a": {"kernel": absent}, "b": jnp.ones(2)})
    assert str(error.value) == (
        "scores.taylor needs a gradient for 'a/kernel', got none. Differentiate with respect to "
        "this parameter, or exclude it with where=."
    )
