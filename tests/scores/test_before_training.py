"""SNIP, GraSP and SynFlow: what each score says, and what each refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune import scores


def mean(params: Any, x: jax.Array, temperature: float = 1.0) -> jax.Array:
    return jnp.mean(x @ params["kernel"]) / temperature


def apply(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["kernel"]


@pytest.fixture
def params(key: jax.Array) -> Any:
    return {"kernel": jax.random.normal(key, (3, 2)), "bias": jnp.ones(2)}


def deep(params: Any, x: jax.Array) -> jax.Array:
    """A network of ReLUs without biases, its layers stacked."""

    def step(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, None]:
        return jax.nn.relu(x @ weight), None

    return lax.scan(step, x, params["stack"])[0]


@pytest.fixture
def stacked(key: jax.Array) -> Any:
    return {"stack": jax.random.normal(key, (60, 64, 64)) * (2 / 64) ** 0.5}


def test_snip_sums_to_1_over_all_layers_and_leaves_out_what_is_not_prunable(params: Any):
    found = scores.snip(mean, params | {"k": jnp.zeros((1, 1))}, [jnp.ones((4, 3))], where="k")
    assert float(found["kernel"].sum() + found["k"].sum()) == pytest.approx(1.0, rel=1e-6)
    assert jax.tree.leaves(found["bias"]) == []


def test_gradients_are_summed_before_their_absolute_value_is_taken(params: Any):
    x = jnp.arange(3.0)[None]
    opposite = [x.at[0, 1].set(1.0), x.at[0, 1].set(-1.0)]
    found = scores.snip(mean, params, opposite)["kernel"]
    assert not found[1].any()
    assert found[2].all()


def test_a_removal_that_raises_the_norm_of_the_gradient_has_a_negative_grasp_score():
    def loss_fn(params: Any, x: jax.Array, temperature: Any) -> jax.Array:
        del temperature
        a, b = params["kernel"].ravel()
        return jnp.sum(x) * (a**2 + b - 2.0 * a * b)

    def norm(a: float, b: float) -> float:
        gradient = jax.grad(loss_fn)({"kernel": jnp.array([[a, b]])}, jnp.ones(1), 1.0)["kernel"]
        return float(jnp.sum(gradient**2))

    at = {"kernel": jnp.array([[3.0, 1.0]])}
    first, second = scores.grasp(loss_fn, at, [jnp.ones(1)])["kernel"].ravel().tolist()
    for score, removed in ((first, norm(3.0 * 0.99, 1.0)), (second, norm(3.0, 1.0 * 0.99))):
        assert (score < 0.0) == (removed > norm(3.0, 1.0))
    assert (first < 0.0) != (second < 0.0)


def test_the_temperature_reaches_the_loss(params: Any):
    def squared(params: Any, x: jax.Array, temperature: float) -> jax.Array:
        return mean(params, x, temperature) ** 2

    hot, cold = (
        scores.grasp(squared, params, [jnp.ones((4, 3))], temperature=t)["kernel"]
        for t in (2.0, 1.0)
    )
    np.testing.assert_allclose(hot * 16.0, cold, rtol=1e-5)  # a square of a square


def test_every_layer_has_the_same_total_of_synflow(stacked: Any):
    shallow = {"stack": stacked["stack"][:12]}
    found = scores.synflow(deep, shallow, jnp.zeros((1, 64)))["stack"]
    np.testing.assert_allclose(found.sum((1, 2)), 1.0 / 12.0, rtol=1e-5)


def test_what_leaves_the_range_of_float32_is_refused_and_fits_into_float64(stacked: Any):
    with pytest.raises(ValueError) as error:
        scores.synflow(deep, stacked, jnp.zeros((1, 64)))
    assert str(error.value) == (
        "scores.synflow: 245760 of 245760 derivatives of 'stack' are not finite. Products of many "
        "layers leave the range of float32: pass x64=True."
    )
    found = scores.synflow(deep, stacked, jnp.zeros((1, 64)), x64=True)["stack"]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found.sum((1, 2)), 1.0 / 60.0, rtol=1e-5)


def test_x64_inside_jit_is_refused(params: Any):
    with pytest.raises(ValueError, match=r"^x64=True cannot be used inside jit\. Call scores\.syn"):
        jax.jit(lambda p: scores.synflow(apply, p, jnp.ones((1, 3)), x64=True))(params)


def refused(error: type[Exception], *args: Any, score: Any = scores.snip, **settings: Any) -> str:
    with pytest.raises(error) as info:
        score(*args, **settings)
    return str(info.value)


def test_missing_batches_are_refused(params: Any):
    for name, score in (("snip", scores.snip), ("grasp", scores.grasp)):
        assert refused(ValueError, mean, params, [], score=score) == (
            f"scores.{name} needs at least one batch, got none. batches is an iterable, such as "
            "[batch]; an iterator that has been used up is empty."
        )


@pytest.mark.parametrize("batch", [jnp.ones((4, 3)), {"x": jnp.ones(3)}])
def test_a_batch_instead_of_batches_is_refused(params: Any, batch: Any):
    assert refused(TypeError, mean, params, batch) == (
        f"scores.snip: batches must be an iterable of batches, got one {type(batch).__name__}. "
        "Pass [batch] for a single one."
    )


def test_a_loss_that_is_not_a_scalar_is_refused(params: Any):
    assert refused(ValueError, apply, params, [jnp.ones((4, 3))]) == (
        "scores.snip needs a loss_fn that returns one floating-point number, got float32 of shape "
        "(4, 2). Average over the batch, and return no auxiliary output."
    )
    pair = refused(ValueError, lambda p, x: (mean(p, x), x), params, [jnp.ones((4, 3))])
    assert "got tuple. Average" in pair


def test_gradients_that_are_nan_are_refused_by_path(params: Any):
    assert refused(ValueError, mean, params, [jnp.full((4, 3), jnp.nan)]) == (
        "scores.snip: 6 of 6 gradients of 'kernel' are not finite. Check the loss and the batches "
        "for overflow and for divisions by zero."
    )


def test_gradients_that_are_all_zero_are_refused(params: Any):
    assert refused(ValueError, mean, params, [jnp.zeros((4, 3))]) == (
        "scores.snip: the gradients of all 1 prunable parameters are 0 (kernel). The function does "
        "not depend on them."
    )


def test_a_loss_without_a_temperature_is_refused(params: Any):
    def two(params: Any, x: jax.Array) -> jax.Array:
        return mean(params, x)

    text = refused(TypeError, two, params, [jnp.ones((4, 3))], score=scores.grasp)
    assert text.startswith("scores.grasp calls loss_fn(params, batch, temperature), but it takes (")
    assert text.endswith(
        "Divide the logits by the third argument; the temperature changes the scores."
    )


@pytest.mark.parametrize("heat", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(params: Any, heat: float):
    assert refused(ValueError, mean, params, [], score=scores.grasp, temperature=heat) == (
        f"temperature must be above 0, got {heat}. The logits are divided by it; the published "
        "value is 200."
    )


def test_inputs_of_integers_are_refused(params: Any):
    tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)
    assert refused(TypeError, apply, params, tokens, score=scores.synflow) == (
        "scores.synflow: example has an input of dtype int32 and shape (1, 3). The input of ones "
        "has to be floating-point; for tokens, let apply_fn start at the embedded ones."
    )


def test_masks_of_another_shape_are_refused(params: Any):
    masks = {"kernel": jnp.ones((2, 2), bool)}
    assert refused(ValueError, mean, params, [jnp.ones((4, 3))], masks=masks) == (
        "masks has bool of shape (2, 2) at 'kernel', whose weight has shape (3, 2). Pass boolean "
        "masks of these parameters, True = kept."
    )
