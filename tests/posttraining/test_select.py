"""Which weights compete, how many go, and which of equal ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import posttraining
from jaxprune.posttraining.select import pruned_count

SHAPE = (16, 6)  # one shape, so that each selection is compiled once
SCORES = jnp.asarray(np.random.default_rng(0).permutation(96).reshape(SHAPE), jnp.float32)


def pruned(mask: Any, axis: Any = None) -> Any:
    return (~np.asarray(mask)).sum(axis=axis).tolist()


def test_a_count_is_the_floor_of_a_product_of_python_floats() -> None:
    assert pruned_count(100, 0.29) == 28  # 28.999999999999996
    for size, share, count in ((10, 0.7, 7), (100, 0.53, 53)):  # 52.999996 in float32
        assert pruned_count(size, share) == count
        assert int(pruned_count(size, jnp.float32(share))) == count
    assert int(pruned_count(1 << 25, jnp.float32(0.75))) == 3 << 23


def test_each_output_loses_the_same_number_and_its_smallest() -> None:
    mask = posttraining.per_output(SCORES, 0.3)
    assert pruned(mask, 0) == [4] * 6
    gone, stay = jnp.where(mask, -1.0, SCORES), jnp.where(mask, SCORES, 99.0)
    assert (gone.max(0) < stay.min(0)).all()
    assert pruned(posttraining.per_output(SCORES, 0.0), 0) == [0] * 6


def test_the_matrix_loses_exactly_the_floor_and_below_a_threshold_one_more() -> None:
    np.testing.assert_array_equal(posttraining.per_matrix(SCORES, 0.505), SCORES >= 48)
    np.testing.assert_array_equal(posttraining.below_threshold(SCORES, 0.505), SCORES > 48)
    assert pruned(posttraining.below_threshold(SCORES, 0.0)) == 1
    assert pruned(posttraining.below_threshold(jnp.ones(SHAPE), 0.5)) == 96


@pytest.mark.parametrize("keep_last", [True, False])
def test_of_equal_scores_the_last_stay_or_the_first(keep_last: bool) -> None:
    scores = jnp.ones(SHAPE)
    order = slice(None, None, 1 if keep_last else -1)
    for select, gone in ((posttraining.per_output, 42), (posttraining.per_matrix, 43)):
        flat = np.asarray(select(scores, 0.45, keep_last=keep_last)).ravel()[order]
        assert flat.tolist() == [False] * gone + [True] * (96 - gone)
    mask = posttraining.per_input_block(scores, 0.5, keep_last=keep_last, size=8)
    assert mask[:, 0].tolist() == ([not keep_last] * 4 + [keep_last] * 4) * 2


@pytest.mark.parametrize("keep_last", [True, False])
def test_of_equal_members_of_a_group_the_last_stay_or_the_first(keep_last: bool) -> None:
    pattern = jaxprune.NM(1, 4, axis=1, pad=True)
    mask = posttraining.per_group(jnp.ones((10, 2)), pattern, keep_last=keep_last)
    assert np.flatnonzero(mask[:, 1]).tolist() == ([3, 7, 9] if keep_last else [0, 4, 8])


def test_blocks_of_inputs_lose_the_same_share() -> None:
    mask = posttraining.per_input_block(SCORES, 0.5, size=10)
    assert [pruned(mask[start : start + 10]) for start in (0, 10)] == [30, 18]
    for rows in (slice(0, 10), slice(10, 16)):
        part = SCORES[rows]
        np.testing.assert_array_equal(mask[rows], part > jnp.sort(part.ravel())[part.size // 2 - 1])


def test_a_traced_sparsity_gives_the_same_mask() -> None:
    for select in (posttraining.per_output, posttraining.per_matrix):
        traced = jax.jit(lambda s, share, select=select: select(s, share))
        for sparsity in (0.0, 0.3, 0.7):
            want = select(SCORES, sparsity)
            np.testing.assert_array_equal(traced(SCORES, jnp.float32(sparsity)), want)


def test_a_pattern_gives_the_sparsity_itself() -> None:
    result = posttraining.prune_by(SCORES, SCORES, posttraining.Target(0.1, jaxprune.NM(1, 4)))
    assert pruned(result.mask, 0) == [12] * 6
    np.testing.assert_array_equal(result.weight, jnp.where(result.mask, SCORES, 0.0))


def message(call: Any) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


def test_errors_say_what_is_allowed() -> None:
    scores = jnp.ones((6, 2))
    target = posttraining.Target(0.5, jaxprune.NM(2, 4))
    assert message(lambda: posttraining.prune_by(scores, scores, target)) == (
        "NM(n=2, m=4, axis=0) does not fit 'weight (in, out)' of shape (6, 2): axis 0 has length "
        "6, not a multiple of 4. Pass pad=True, another axis, or exclude this parameter with "
        "where=."
    )
    assert message(lambda: posttraining.prune_by(scores, scores[:3], target)) == (
        "scores have shape (3, 2), the weight (6, 2). Give one score for each weight of the matrix "
        "(in, out)."
    )
    assert message(lambda: posttraining.per_input_block(scores, 0.5, size=0)) == (
        "size must be 1 or more, got 0. It is the inputs of a block."
    )
    assert message(lambda: posttraining.per_output(scores, 1.0)) == (
        "sparsity must be a finite number in [0, 1), got 1.0. A sparsity is the share of zeros: "
        "0.9 prunes 90% of the weights."
    )
