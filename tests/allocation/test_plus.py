"""uniform_plus and erk_plus: the ends are spared, and the rest is divided."""

import math

import pytest

from jaxprune import allocation

SHAPES = {"a_head": (64, 10), "body": (64, 256), "stem": (3, 64), "tail": (256, 64)}


def total(densities: dict[str, float]) -> float:
    sizes = {path: math.prod(shape) for path, shape in SHAPES.items()}
    return sum(densities[path] * size for path, size in sizes.items()) / sum(sizes.values())


def test_the_first_is_dense_and_the_last_has_its_minimum():
    densities = allocation.uniform_plus(first="stem", last="head")(SHAPES, 0.9)
    assert (densities["stem"], densities["a_head"]) == (1.0, 0.2)
    assert densities["body"] == densities["tail"] < 0.1
    assert total(densities) == pytest.approx(0.1, rel=1e-12)


def test_above_its_minimum_the_last_has_the_overall_density():
    densities = allocation.uniform_plus(first="stem", last="head", min_last=0.2)(SHAPES, 0.5)
    assert densities["a_head"] == 0.5
    assert total(densities) == pytest.approx(0.5, rel=1e-12)


def test_erk_plus_divides_by_erk_what_the_last_leaves():
    densities = allocation.erk_plus(last="head", last_density=0.5)(SHAPES, 0.9)
    assert densities["a_head"] == 0.5
    rest = {path: shape for path, shape in SHAPES.items() if path != "a_head"}
    size = sum(math.prod(shape) for shape in rest.values())
    left = 0.1 * (size + 640) - 320
    assert densities == pytest.approx(
        allocation.erdos_renyi_kernel(rest, 1.0 - left / size) | {"a_head": 0.5}
    )


def test_ends_that_exceed_the_budget_are_refused():
    with pytest.raises(ValueError) as error:
        allocation.uniform_plus(first="stem", last="head")(SHAPES, 0.995)
    assert str(error.value) == (
        "uniform_plus cannot reach sparsity=0.995: its first and last layers ('a_head', 'stem') "
        "keep 320 of 33600 weights, and no more may be left. Lower the sparsity or the density of "
        "the last."
    )


def test_a_regex_that_is_found_nowhere_is_refused():
    with pytest.raises(ValueError) as error:
        allocation.erk_plus(last="classifier")(SHAPES, 0.5)
    assert str(error.value) == (
        "erk_plus: the regex 'classifier' is found in none of the paths 'a_head', 'body', 'stem', "
        "'tail'. Correct it."
    )


def test_an_invalid_regex_is_refused():
    with pytest.raises(ValueError) as error:
        allocation.uniform_plus(first="(", last="head")
    assert str(error.value) == (
        "first='(' is not a regular expression (missing ), unterminated subpattern at position 0). "
        "It is searched in paths such as 'Dense_0/kernel'."
    )


def test_a_density_outside_of_the_unit_interval_is_refused():
    with pytest.raises(ValueError) as error:
        allocation.erk_plus(last="head", last_density=1.5)
    assert str(error.value) == (
        "last_density must be in [0, 1], got 1.5. It is the share of the last layer to keep."
    )
