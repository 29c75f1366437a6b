"""What OWL's allocation promises."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import posttraining


def test_the_mean_is_kept_and_the_block_with_outliers_is_densest() -> None:
    rng = np.random.default_rng(0)
    blocks = [[jnp.asarray(rng.uniform(size=(20, 10)), jnp.float32)] * 2 for _ in range(4)]
    blocks[2][1] = blocks[2][1].at[0, :5].set(100.0)
    ratios = [float(posttraining.outlier_ratio(block)) for block in blocks]
    assert ratios == [0.0, 0.0, np.float32(5 / 400), 0.0]
    found = posttraining.owl_sparsities(ratios, 0.7)
    np.testing.assert_allclose(found.mean(), 0.7)
    assert found.argmin() == 2
    np.testing.assert_allclose(found.max() - found.min(), 0.16)


def test_the_mean_score_is_of_all_matrices_together() -> None:
    small, large = jnp.ones((10, 10)), jnp.full((1, 4), 20.0)
    assert float(posttraining.outlier_ratio([small, large * 0.275])) == 0.0  # 5.5 of 5.87
    assert float(posttraining.outlier_ratio([small, large])) == np.float32(4 / 104)
    assert float(posttraining.outlier_ratio([large])) == 0.0
    both = jax.vmap(lambda a, b: posttraining.outlier_ratio([a, b]))
    stacked = both(jnp.stack([small, small]), jnp.stack([large, large * 0.0]))
    assert stacked.tolist() == [np.float32(4 / 104), 0.0]


def test_blocks_that_do_not_differ_get_the_same() -> None:
    assert posttraining.owl_sparsities([2.0, 2.0], 0.6).tolist() == [0.6, 0.6]
    assert posttraining.owl_sparsities([0.0, 1.0], 0.05).tolist() == [pytest.approx(0.13), 0.01]


def test_patterns_go_up_and_down_around_the_mean() -> None:
    found = posttraining.owl_patterns([0.0, 0.0, 4.0, 8.0], jaxprune.NM(4, 8))
    assert [pattern.n for pattern in found] == [3, 3, 4, 5]
    found = posttraining.owl_patterns([0.0, 9.0], jaxprune.NM(1, 2), spread=4.0)
    assert [pattern.n for pattern in found] == [1, 2]


def message(call: Any) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


def test_errors() -> None:
    assert message(lambda: posttraining.owl_sparsities([0.0, 1.0], 0.95)) == (
        "owl_sparsities: sparsity=0.95 with spread=0.08 gives block 0 a sparsity of 1.0300, which "
        "must stay below 1. Lower the spread or the sparsity."
    )
    assert message(lambda: posttraining.owl_sparsities([0.0, np.nan], 0.5)) == (
        "ratios must be one finite number for each block, got [0.0, nan]. outlier_ratio gives that "
        "of one block."
    )
    assert message(lambda: posttraining.outlier_ratio([])) == (
        "outlier_ratio got no scores. Give those of each matrix of the block."
    )
