"""ADMM: masks that are exact, errors below those of SparseGPT, and hard Gram matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import posttraining
from tests.posttraining.solved import HALF, TWO_OF_FOUR, compiled, correlated, error

ADMM = posttraining.admm()


@pytest.mark.parametrize("target", [HALF, TWO_OF_FOUR], ids=str)
def test_the_error_is_below_that_of_sparsegpt(target: posttraining.Target) -> None:
    weight, inputs = correlated()
    pruned = compiled(ADMM)(weight, inputs, target)
    greedy = posttraining.sparsegpt(blocksize=20)
    assert int(pruned.mask.sum()) == 144
    assert (pruned.weight[~pruned.mask] == 0).all()
    assert pruned.damping == np.float32(0.1)
    mine = error(weight, pruned.weight, inputs.gram)
    assert mine < error(weight, compiled(greedy)(weight, inputs, target).weight, inputs.gram)


def test_uncorrelated_inputs_leave_magnitude() -> None:
    weight, inputs = correlated()
    method = compiled(posttraining.admm(mask_updates=0))
    pruned = method(weight, inputs._replace(gram=jnp.eye(48)), HALF)
    plain = posttraining.magnitude()(weight, inputs, HALF)
    np.testing.assert_array_equal(pruned.mask, plain.mask)
    np.testing.assert_allclose(pruned.weight, plain.weight, rtol=1e-4)


def test_without_iterations_it_is_wanda() -> None:
    weight, inputs = correlated()
    assert inputs.gram is not None
    squares = jnp.diagonal(inputs.gram)
    method = posttraining.admm(iterations=0, select=posttraining.per_output)
    pruned = method(weight, inputs, HALF)
    wanda = posttraining.wanda()(weight, inputs._replace(squares=squares), HALF)
    np.testing.assert_array_equal(pruned.mask, wanda.mask)
    np.testing.assert_allclose(pruned.weight, wanda.weight, rtol=1e-6)


def test_the_mask_of_an_only_update_is_that_of_the_dense_weights() -> None:
    weight, inputs = correlated()
    fixed = compiled(posttraining.admm(mask_updates=0))(weight, inputs, HALF)
    dense = posttraining.admm(iterations=0)(weight, inputs, HALF)
    np.testing.assert_array_equal(fixed.mask, dense.mask)
    assert error(weight, fixed.weight, inputs.gram) < error(weight, dense.weight, inputs.gram)
    assert (compiled(ADMM)(weight, inputs, HALF).mask != fixed.mask).any()


def test_a_gradual_mask_is_exact_and_another() -> None:
    weight, inputs = correlated()
    gradual = compiled(posttraining.admm(gradual=True))(weight, inputs, HALF)
    assert int(gradual.mask.sum()) == 144
    assert (gradual.mask != compiled(ADMM)(weight, inputs, HALF).mask).any()
    third = posttraining.Target(0.5, jaxprune.NM(1, 3))  # 1 − 1/3 is not exact
    mask = compiled(ADMM)(weight, inputs, third).mask
    np.testing.assert_array_equal(mask.reshape(16, 3, 6).sum(1), np.ones((16, 6)))
    at_once = compiled(posttraining.admm(gradual=False))(weight, inputs, third).mask
    assert (mask != at_once).any()


@pytest.mark.slow  # compiles twice; that of SparseGPT is in the default run
def test_scale_dtype_and_layers() -> None:
    weight, inputs = correlated()
    pruned = compiled(ADMM)(weight, inputs, TWO_OF_FOUR)
    louder = jax.tree.map(lambda x: x * 1e4, inputs)
    weights, both = jax.tree.map(lambda *x: jnp.stack(x), (weight, inputs), (weight, louder))
    method = jax.jit(jax.vmap(lambda w, i: ADMM(w, i, TWO_OF_FOUR)))
    mapped = method(weights.astype(jnp.bfloat16), both)
    assert mapped.weight.dtype == jnp.bfloat16
    for layer in range(2):
        assert float((mapped.mask[layer] != pruned.mask).mean()) < 0.03  # of the rounded weight
        close = jnp.where(pruned.mask & mapped.mask[layer], mapped.weight[layer], 0.0)
        assert error(weight, close, inputs.gram) < 2 * error(weight, pruned.weight, inputs.gram)


def test_hard_gram_matrices() -> None:
    weight, inputs = correlated()
    assert inputs.gram is not None
    one, alive = jnp.arange(1.0, 49.0), jnp.ones(48).at[3].set(0.0)
    some = inputs.gram * alive[:, None] * alive[None]
    for gram in (one[:, None] * one[None], jnp.zeros((48, 48)), some):
        pruned = compiled(ADMM)(weight, inputs._replace(gram=gram), HALF)
        assert jnp.isfinite(pruned.weight).all()
        assert int(pruned.mask.sum()) == 144
    spoiled = inputs._replace(gram=inputs.gram.at[2, 2].set(jnp.nan))
    pruned = compiled(ADMM)(weight, spoiled, HALF)
    assert jnp.isnan(pruned.weight[pruned.mask]).all()


def test_arguments_are_checked() -> None:
    for name in ("iterations", "mask_updates"):
        with pytest.raises(ValueError, match=f"^{name} must be an integer, 0 or more, got -1.$"):
            posttraining.admm(**{name: -1})
    with pytest.raises(ValueError, match=r"^damping must be a number, 0 or more, got -0.1.$"):
        posttraining.admm(damping=-0.1)
    with pytest.raises(ValueError, match=r"^ADMM needs inputs.gram, got None."):
        ADMM(jnp.ones((4, 2)), posttraining.Inputs(jnp.float32(1), jnp.float32(1)), HALF)
