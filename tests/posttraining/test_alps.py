"""ALPS: masks that are exact, errors below those of SparseGPT, and hard Gram matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import posttraining
from tests.posttraining.solved import HALF, TWO_OF_FOUR, compiled, correlated, error

ALPS = posttraining.alps()


@pytest.mark.parametrize("target", [HALF, TWO_OF_FOUR], ids=str)
def test_the_error_is_below_that_of_sparsegpt(target: posttraining.Target) -> None:
    weight, inputs = correlated()
    pruned = compiled(ALPS)(weight, inputs, target)
    greedy = posttraining.sparsegpt(blocksize=20)
    assert int(pruned.mask.sum()) == 144
    assert (pruned.weight[~pruned.mask] == 0).all()
    assert pruned.damping == np.float32(0.01)
    mine = error(weight, pruned.weight, inputs.gram)
    assert mine < error(weight, compiled(greedy)(weight, inputs, target).weight, inputs.gram)


@pytest.mark.slow  # compiles a longer refinement; the errors are compared above
def test_the_kept_weights_are_the_best_for_their_mask() -> None:
    weight, inputs = correlated()
    method = posttraining.alps(refinements=60, damping=0.01)
    pruned = compiled(method)(weight, inputs, TWO_OF_FOUR)
    gram = np.asarray(inputs.gram, np.float64)
    gram += 0.01 * np.mean(np.diag(gram)) * np.eye(48)
    for output, mask in enumerate(np.asarray(pruned.mask).T):
        wanted = gram[mask] @ np.asarray(weight)[:, output]
        best = np.linalg.solve(gram[mask][:, mask], wanted)
        np.testing.assert_allclose(pruned.weight[mask, output], best, rtol=1e-2, atol=1e-3)


def test_uncorrelated_inputs_leave_magnitude() -> None:
    weight, inputs = correlated()
    pruned = compiled(ALPS)(weight, inputs._replace(gram=jnp.eye(48)), HALF)
    plain = posttraining.magnitude()(weight, inputs, HALF)
    np.testing.assert_array_equal(pruned.mask, plain.mask)
    np.testing.assert_allclose(pruned.weight, plain.weight, rtol=1e-4)


@pytest.mark.slow  # compiles twice; that of SparseGPT is in the default run
def test_scale_dtype_and_layers() -> None:
    weight, inputs = correlated()
    pruned = compiled(ALPS)(weight, inputs, TWO_OF_FOUR)
    louder = jax.tree.map(lambda x: x * 1e4, inputs)
    weights, both = jax.tree.map(lambda *x: jnp.stack(x), (weight, inputs), (weight, louder))
    method = jax.jit(jax.vmap(lambda w, i: ALPS(w, i, TWO_OF_FOUR)))
    mapped = method(weights.astype(jnp.bfloat16), both)
    assert mapped.weight.dtype == jnp.bfloat16
    found = error(weight, pruned.weight, inputs.gram)
    for layer in range(2):
        assert float((mapped.mask[layer] != pruned.mask).mean()) < 0.1
        assert error(weight, mapped.weight[layer], inputs.gram) < 1.2 * found


def test_hard_gram_matrices() -> None:
    weight, inputs = correlated()
    assert inputs.gram is not None
    one = jnp.arange(1.0, 49.0)
    for gram in (one[:, None] * one[None], jnp.zeros((48, 48))):
        pruned = compiled(ALPS)(weight, inputs._replace(gram=gram), HALF)
        assert jnp.isfinite(pruned.weight).all()
        assert int(pruned.mask.sum()) == 144
    spoiled = inputs._replace(gram=inputs.gram.at[2, 2].set(jnp.nan))
    pruned = compiled(ALPS)(weight, spoiled, HALF)
    assert jnp.isnan(pruned.weight[pruned.mask]).all()


def test_arguments_are_checked() -> None:
    for name, least in (("iterations", 1), ("every", 1), ("refinements", 0)):
        with pytest.raises(
            ValueError, match=f"^{name} must be an integer, {least} or more, got -1.$"
        ):
            posttraining.alps(**{name: -1})
    with pytest.raises(ValueError, match=r"^penalty must be a number, 1e-08 or more, got 0.0.$"):
        posttraining.alps(penalty=0.0)
    with pytest.raises(ValueError, match=r"^ALPS needs inputs.gram, got None."):
        ALPS(jnp.ones((4, 2)), posttraining.Inputs(jnp.float32(1), jnp.float32(1)), HALF)
