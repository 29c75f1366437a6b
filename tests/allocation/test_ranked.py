"""The global ranking's floors, and Global MP's redistribution."""

import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxprune import allocation


def test_floors_are_the_larger_of_both_but_not_more_than_the_layer():
    rule = allocation.global_(min_density=0.1, min_kept=5)
    assert [rule.floor(size) for size in (3, 20, 100, 101)] == [3, 5, 10, 11]
    assert allocation.global_().floor(100) == 0
    assert allocation.global_(min_density=1).floor(7) == 7


def test_floors_are_not_raised_by_rounding_errors():
    rule = allocation.global_(min_density=0.07)  # 0.07 * 100 = 7.000000000000001
    assert rule.floor(100) == 7


def test_a_global_ranking_has_no_densities_without_scores():
    with pytest.raises(TypeError) as error:
        allocation.global_()({"a": (2, 2)}, 0.5)
    assert str(error.value) == (
        "global_ has no densities without scores: it ranks all weights together. Pass it as "
        "allocation= to make_masks, prune or a transform, instead of calling it."
    )


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_min_density_must_be_a_share(value: float):
    with pytest.raises(ValueError) as error:
        allocation.global_(min_density=value)
    assert str(error.value) == (
        f"min_density must be in [0, 1], got {value}. "
        "It is the share of each layer that is kept at least."
    )


COUNT = "It is the number of weights of each layer that are kept at least."


def test_min_kept_must_not_be_negative():
    with pytest.raises(ValueError) as error:
        allocation.global_(min_kept=-1)
    assert str(error.value) == f"min_kept must be 0 or more, got -1. {COUNT}"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.5, "0.5 of type float"), (True, "True of type bool")]
)
def test_min_kept_must_be_an_integer(value: Any, shown: str):
    with pytest.raises(TypeError) as error:
        allocation.global_(min_kept=value)
    assert str(error.value) == f"min_kept must be an integer, got {shown}. {COUNT}"


SHAPES = {"a": (10,), "b": (100,), "c": (1000,)}


def test_small_layers_stay_dense_and_the_others_keep_the_minimum():
    given = {"a": 0.9, "b": 1.0, "c": 0.8}
    found = allocation.minimum_threshold(given, SHAPES, 0.8, min_kept=20)
    assert found["a"] == 0.0
    assert found["b"] == pytest.approx(0.8)
    assert 80 + found["c"] * 1000 == pytest.approx(0.8 * 1110)


def test_where_nothing_is_clamped_sparsities_keep_their_ratio():
    given = {"a": 0.2, "b": 0.4, "c": 0.6}
    found = allocation.minimum_threshold(given, SHAPES, 0.5, min_kept=0)
    ratios = [found[path] / given[path] for path in given]
    assert ratios == pytest.approx([ratios[0]] * 3)


@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 500), st.floats(0.01, 1.0)), min_size=1, max_size=6),
    st.floats(0.01, 0.99),
    st.integers(0, 50),
)
def test_the_budget_is_met_or_the_error_is_right(
    layers: list[tuple[int, float]], sparsity: float, least: int
):
    shapes = {str(i): (size,) for i, (size, _) in enumerate(layers)}
    given = {str(i): share for i, (_, share) in enumerate(layers)}
    total = sum(size for size, _ in layers)
    reachable = sum(max(size - least, 0) for size, _ in layers)
    try:
        found = allocation.minimum_threshold(given, shapes, sparsity, min_kept=least)
    except ValueError:
        assert reachable < sparsity * total * (1 + 1e-9)
        return
    for (size, _), share in zip(layers, found.values(), strict=True):
        assert (1.0 - share) * size >= min(least, size) - 1e-6
    pruned = sum(s * size for s, (size, _) in zip(found.values(), layers, strict=True))
    assert pruned == pytest.approx(sparsity * total, rel=1e-8)


def test_a_minimum_that_leaves_too_little_is_refused():
    with pytest.raises(ValueError) as error:
        allocation.minimum_threshold({"a": 0.5, "b": 0.9, "c": 0.9}, SHAPES, 0.9, min_kept=60)
    assert str(error.value) == (
        "minimum_threshold cannot reach sparsity=0.9 with min_kept=60: keeping that many weights "
        "of each layer prunes at most 0.882883. Lower min_kept or the sparsity."
    )
