"""What ECoFLaP's allocation and its zeroth-order scores promise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import posttraining


def test_equal_blocks_get_the_same_and_a_block_without_score_the_most() -> None:
    found = posttraining.ecoflap_sparsities([2.0] * 4, [50] * 4, 0.6)
    np.testing.assert_allclose(found, 0.6)
    found = posttraining.ecoflap_sparsities([3.0, 1.0, 0.0], [200, 200, 200], 0.5, max_sparsity=0.7)
    np.testing.assert_allclose(found, [0.25, 0.55, 0.7], atol=0.01)
    assert found[2] == pytest.approx(0.7)


def test_the_budget_is_exact_whatever_the_scores() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(20, 500, size=5)
        scores = rng.exponential(size=5) ** 4 * rng.integers(0, 2, size=5)
        sparsity = float(rng.uniform(0.1, 0.8))
        found = posttraining.ecoflap_sparsities(scores, sizes, sparsity, max_sparsity=0.9)
        assert round(float(((1 - found) * sizes).sum())) == int(sizes.sum() * (1 - sparsity))
        assert (found <= 0.9 + 1e-9).all()
        assert (found >= 0.0).all()


def test_the_published_code_keeps_more_than_was_asked_for() -> None:
    given = ([5.0, 1.0, 3.0, 0.2], [100, 100, 200, 50], 0.5)
    kept = [
        round(float(((1 - posttraining.ecoflap_sparsities(*given, published=p)) * given[1]).sum()))
        for p in (False, True)
    ]
    assert kept == [225, 227]


def test_losses_at_two_ends_give_the_size_of_the_slope() -> None:
    weight, slope = jnp.ones((3, 2)), jnp.arange(6.0).reshape(3, 2)
    ends = posttraining.perturbed(weight, jax.random.key(0), eps=0.5)
    losses = [jnp.sum(end * slope)[None] for end in ends]
    found = posttraining.zeroth_order(losses[0], losses[1], eps=0.5)
    want = jnp.abs(jnp.sum((ends[0] - weight) / 0.5 * slope))
    np.testing.assert_allclose(found, want, rtol=1e-5)
    half = posttraining.perturbed(weight.astype(jnp.bfloat16), jax.random.key(0))
    assert half[0].dtype == half[1].dtype == jnp.bfloat16


def message(call: Any) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


def test_errors() -> None:
    allocate = posttraining.ecoflap_sparsities
    assert message(lambda: allocate([1.0], [9], 0.6, max_sparsity=0.5)) == (
        "max_sparsity must be in [sparsity=0.6, 1], got 0.5. It is the most that any block is "
        "pruned."
    )
    assert message(lambda: allocate([1.0, 2.0], [9], 0.5)) == (
        "scores and sizes must be one number for each block, got shapes (2,) and (1,)."
    )
    assert message(lambda: allocate([-1.0], [9], 0.5)) == (
        "scores must be finite and not negative, and sizes 1 or more, got scores [-1.0] and sizes "
        "[9]."
    )
    assert message(lambda: posttraining.zeroth_order(jnp.ones(3), jnp.ones(2))) == (
        "plus has shape (3,) and minus (2,); both must be (samples, ...), losses at the two ends "
        "of the same steps."
    )
    weight = jnp.ones((2, 3))
    assert message(lambda: posttraining.weighted_gradient(weight, jnp.ones(3), power=1)) == (
        "gradient has shape (3,); give one number, or one for each weight of shape (2, 3)."
    )
    assert message(lambda: posttraining.weighted_gradient(weight, weight, power=3)) == (
        "power must be 0, 1 or 2, got 3. It is that of the weight in its importance."
    )
