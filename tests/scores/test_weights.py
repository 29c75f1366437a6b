"""Magnitude."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import scores


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_magnitude_is_the_absolute_value_in_the_weights_type(dtype: Any):
    weights = jnp.array([-2.0, 0.5, -0.0, jnp.inf], dtype)
    found = scores.magnitude({"w": weights})["w"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, jnp.array([2.0, 0.5, 0.0, jnp.inf], dtype))


def test_magnitude_ignores_gradients():
    params = {"w": jnp.array([-2.0, 1.0])}
    found = scores.magnitude(params, {"w": jnp.array([0.0, 9.0])})
    np.testing.assert_array_equal(found["w"], [2.0, 1.0])
