"""SparseGPT: compensation, blocks and groups, damping, dead inputs, and what it refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import posttraining
from jaxprune.posttraining.gram import upper_factor
from tests.posttraining.solved import HALF, TWO_OF_FOUR, compiled, correlated, error

# Of 48 inputs: two blocks of a panel of 16 and one of 4, and a last block of 8.
TWENTY = posttraining.sparsegpt(blocksize=20)


def plain(
    weight: np.ndarray, hessian: np.ndarray, blocksize: int, target: posttraining.Target
) -> np.ndarray:
    """The published loop in float64, over [out, in]; it prunes exact counts."""
    weight, size = weight.T.astype(np.float64), len(hessian)
    mean = np.mean(np.diag(hessian))
    upper = np.linalg.cholesky(np.linalg.inv(hessian + 0.01 * mean * np.eye(size))).T
    gone = np.zeros(weight.shape, bool)
    for first in range(0, size, blocksize):
        last = min(first + blocksize, size)
        scores = np.square(weight / np.diag(upper))
        if isinstance(target.pattern, jaxprune.Unstructured):
            part = scores[:, first:last]
            lowest = np.argsort(part, axis=None)[: int(part.size * target.sparsity)]
            gone[np.unravel_index(lowest, part.shape)[0], lowest % (last - first) + first] = True
        for i in range(first, last):
            if isinstance(target.pattern, jaxprune.NM) and i % target.pattern.m == 0:
                group = np.square(weight / np.diag(upper))[:, i : i + target.pattern.m]
                lowest = np.argsort(group)[:, : group.shape[1] - target.pattern.n]
                np.put_along_axis(gone[:, i : i + target.pattern.m], lowest, True, 1)
            lost = np.where(gone[:, i], weight[:, i], 0.0) / upper[i, i]
            weight[:, i:] -= lost[:, None] * upper[i, i:]
    return np.where(gone, 0.0, weight).T


@pytest.mark.parametrize("target", [HALF, TWO_OF_FOUR], ids=str)
def test_it_is_the_published_loop(target: posttraining.Target) -> None:
    weight, inputs = correlated()
    pruned = compiled(TWENTY)(weight, inputs, target)
    found = plain(np.asarray(weight), np.asarray(inputs.gram) / 2, 20, target)
    np.testing.assert_array_equal(pruned.mask, found != 0)
    np.testing.assert_allclose(pruned.weight, found, rtol=1e-3, atol=1e-4)


def test_a_large_group_is_settled_in_a_loop() -> None:
    weight, inputs = correlated(shape=(48, 6))
    target = posttraining.Target(0.5, jaxprune.NM(8, 16))
    pruned = compiled(posttraining.sparsegpt(blocksize=16))(weight, inputs, target)
    found = plain(np.asarray(weight), np.asarray(inputs.gram) / 2, 16, target)
    np.testing.assert_array_equal(pruned.mask, found != 0)
    np.testing.assert_allclose(pruned.weight, found, rtol=1e-3, atol=1e-4)


def test_a_last_group_that_is_short_keeps_n_of_what_it_has() -> None:
    weight, inputs = correlated(shape=(43, 6))
    target = posttraining.Target(0.5, jaxprune.NM(1, 4, pad=True))
    pruned = compiled(TWENTY)(weight, inputs, target)
    np.testing.assert_array_equal(pruned.mask.sum(0), [11] * 6)
    np.testing.assert_array_equal(pruned.mask[40:].sum(0), [1] * 6)
    found = plain(np.asarray(weight), np.asarray(inputs.gram) / 2, 20, target)
    np.testing.assert_allclose(pruned.weight, found, rtol=1e-3, atol=1e-4)


def test_uncorrelated_inputs_leave_magnitude_in_blocks() -> None:
    weight, inputs = correlated()
    inputs = inputs._replace(gram=jnp.eye(48))
    pruned = compiled(TWENTY)(weight, inputs, HALF)
    mask = posttraining.per_input_block(jnp.abs(weight), 0.5, size=20)
    np.testing.assert_array_equal(pruned.mask, mask)
    np.testing.assert_array_equal(pruned.weight, jnp.where(mask, weight, 0.0))


@pytest.mark.parametrize("target", [HALF, TWO_OF_FOUR], ids=str)
def test_compensation_lowers_the_error(target: posttraining.Target) -> None:
    weight, inputs = correlated()
    pruned = compiled(TWENTY)(weight, inputs, target)
    masked = jnp.where(pruned.mask, weight, 0.0)
    smallest = posttraining.magnitude()(weight, inputs, target).weight
    mine = error(weight, pruned.weight, inputs.gram)
    assert mine < 0.6 * error(weight, masked, inputs.gram)
    assert mine < 0.6 * error(weight, smallest, inputs.gram)


def test_the_scale_of_the_inputs_does_not_matter() -> None:
    weight, inputs = correlated()
    pruned = compiled(TWENTY)(weight, inputs, HALF)
    for scale in (1e-8, 1e8):
        assert inputs.gram is not None
        other = compiled(TWENTY)(weight, inputs._replace(gram=inputs.gram * scale), HALF)
        np.testing.assert_array_equal(pruned.mask, other.mask)
        np.testing.assert_allclose(pruned.weight, other.weight, rtol=1e-4, atol=1e-5)


def test_a_weight_keeps_its_dtype() -> None:
    weight, inputs = correlated()
    weight = weight.astype(jnp.bfloat16)
    pruned = compiled(TWENTY)(weight, inputs, TWO_OF_FOUR)
    exact = compiled(TWENTY)(weight.astype(jnp.float32), inputs, TWO_OF_FOUR)
    assert pruned.weight.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pruned.mask, exact.mask)
    np.testing.assert_array_equal(pruned.weight, exact.weight.astype(jnp.bfloat16))
    assert (pruned.weight[~pruned.mask] == 0).all()


def test_layers_are_mapped_over() -> None:
    layers = [correlated(seed) for seed in (0, 1)]
    weights, inputs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    both = jax.jit(jax.vmap(lambda w, i: TWENTY(w, i, TWO_OF_FOUR)))(weights, inputs)
    for number, (weight, one) in enumerate(layers):
        alone = compiled(TWENTY)(weight, one, TWO_OF_FOUR)
        np.testing.assert_array_equal(both.mask[number], alone.mask)
        np.testing.assert_allclose(both.weight[number], alone.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.slow  # compiles once more; the recordings are compared with traced sparsities too
def test_the_sparsity_may_be_traced() -> None:
    weight, inputs = correlated()
    prune = jax.jit(lambda sparsity: TWENTY(weight, inputs, posttraining.Target(sparsity)))
    expected = compiled(TWENTY)(weight, inputs, HALF)
    np.testing.assert_array_equal(prune(jnp.float32(0.5)).mask, expected.mask)
    np.testing.assert_array_equal(prune(jnp.float32(0.0)).weight, weight)


def test_the_factor_is_that_of_the_damped_matrix() -> None:
    gram = np.asarray(correlated()[1].gram)
    factor = upper_factor(jnp.asarray(gram), 0.25)
    upper = np.asarray(factor.upper)
    np.testing.assert_array_equal(upper, np.triu(upper))
    whole = gram + 0.25 * np.mean(np.diag(gram)) * np.eye(48)
    np.testing.assert_allclose(upper @ upper.T, whole, rtol=1e-4, atol=1e-2)
    assert factor.damping == np.float32(0.25)


def test_a_singular_gram_matrix_raises_the_damping() -> None:
    weight, inputs = correlated()
    one = jnp.arange(1.0, 49.0)
    singular = inputs._replace(gram=one[:, None] * one[None])
    pruned = compiled(posttraining.sparsegpt(blocksize=8, damping=0.0))(weight, singular, HALF)
    assert 0.0 < float(pruned.damping) < 1e-3
    assert jnp.isfinite(pruned.weight).all()
    assert error(weight, pruned.weight, singular.gram) < 1e-3
    assert compiled(TWENTY)(weight, singular, TWO_OF_FOUR).damping == np.float32(0.01)


@pytest.mark.parametrize("target", [HALF, TWO_OF_FOUR], ids=str)
def test_dead_inputs_become_zero(target: posttraining.Target) -> None:
    weight, inputs = correlated()
    assert inputs.gram is not None
    alive = jnp.ones(48).at[jnp.array([3, 8, 9, 10])].set(0.0)
    gram = inputs.gram * alive[:, None] * alive[None]
    pruned = compiled(TWENTY)(weight, inputs._replace(gram=gram), target)
    assert (pruned.weight[alive == 0] == 0).all()
    assert jnp.isfinite(pruned.weight).all()
    assert int(pruned.mask.sum()) == 144
    nothing = compiled(TWENTY)(weight, inputs._replace(gram=jnp.zeros((48, 48))), target)
    assert (nothing.weight == 0).all()
    assert int(nothing.mask.sum()) == 144


def test_nan_in_the_gram_matrix_makes_the_weight_nan() -> None:
    weight, inputs = correlated()
    assert inputs.gram is not None
    for bad in (jnp.nan, jnp.inf):
        spoiled = inputs._replace(gram=inputs.gram.at[2, 5].set(bad).at[5, 2].set(bad))
        pruned = compiled(TWENTY)(weight, spoiled, HALF)
        assert jnp.isnan(pruned.weight[pruned.mask]).all()
        assert (pruned.weight[~pruned.mask] == 0).all()


def message(kind: type[Exception], run: Any) -> str:
    with pytest.raises(kind) as caught:
        run()
    return str(caught.value)


def test_arguments_are_checked() -> None:
    assert message(ValueError, lambda: posttraining.sparsegpt(blocksize=0)) == (
        "blocksize must be an integer, 1 or more, got 0."
    )
    assert message(ValueError, lambda: posttraining.sparsegpt(damping=float("nan"))) == (
        "damping must be a number, 0 or more, got nan."
    )
    assert message(TypeError, lambda: posttraining.sparsegpt(blocksize=8.0)) == (
        "blocksize must be an integer, got 8.0 of type float."
    )
    assert message(TypeError, lambda: posttraining.sparsegpt(damping="1%")) == (
        "damping must be a number, got '1%' of type str."
    )


def test_inputs_that_do_not_fit_are_refused() -> None:
    weight, inputs = correlated()
    call = posttraining.sparsegpt()
    assert message(ValueError, lambda: call(weight[None], inputs, HALF)) == (
        "SparseGPT prunes one matrix (in, out), got a weight of shape (1, 48, 6). Flatten what it "
        "contracts to one axis, and jax.vmap over stacked layers."
    )
    assert message(ValueError, lambda: call(weight, inputs._replace(gram=None), HALF)) == (
        "SparseGPT needs inputs.gram, got None. It is the sum of x xᵀ over the inputs, (in, in)."
    )
    assert message(ValueError, lambda: call(weight[:8], inputs, HALF)) == (
        "inputs.gram has shape (48, 48); a weight of shape (8, 6) needs (8, 8): the sum of x xᵀ "
        "over the inputs."
    )
    odd = posttraining.Target(0.5, jaxprune.NM(2, 5))
    assert "length 48, not a multiple of 5" in message(
        ValueError, lambda: call(weight, inputs, odd)
    )
    channels = posttraining.Target(0.5, jaxprune.Channel(1))
    assert message(TypeError, lambda: call(weight, inputs, channels)) == (
        "SparseGPT cannot serve pattern=Channel(axis=1). It prunes to Unstructured() or NM(n, m)."
    )
    cut = posttraining.sparsegpt(blocksize=6)
    assert message(ValueError, lambda: cut(weight, inputs, TWO_OF_FOUR)) == (
        "blocksize=6 cuts the groups of NM(n=2, m=4). Pass a multiple of 4."
    )
