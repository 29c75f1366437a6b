"""precrop: equal counts, or equal costs, of the layers that are not dense."""

import math

import pytest

from jaxprune import allocation

SHAPES = {"one": (4, 4), "two": (16, 8), "three": (32, 32)}


def test_layers_that_are_not_dense_keep_equally_many_weights():
    densities = allocation.precrop()(SHAPES, 0.8)
    kept = {path: densities[path] * math.prod(shape) for path, shape in SHAPES.items()}
    assert densities["one"] == 1.0
    assert kept["two"] == pytest.approx(kept["three"])
    assert sum(kept.values()) == pytest.approx(0.2 * (16 + 128 + 1024), rel=1e-12)


def test_a_budget_of_costs_is_met_with_equal_costs():
    costs = {"one": 100.0, "two": 1.0, "three": 50.0}
    densities = allocation.precrop(costs=costs)(SHAPES, 0.6)
    spent = {path: densities[path] * cost for path, cost in costs.items()}
    assert spent == pytest.approx({"one": 29.7, "two": 1.0, "three": 29.7})


def test_a_cost_that_is_not_positive_is_refused():
    with pytest.raises(ValueError) as error:
        allocation.precrop(costs={"one": 0.0})
    assert str(error.value) == (
        "costs must be finite and above 0, got 0.0 for 'one'. A cost is what the dense layer "
        "takes, such as its FLOPs."
    )


def test_a_path_without_a_cost_is_refused():
    with pytest.raises(ValueError) as error:
        allocation.precrop(costs={"one": 1.0, "two": 1.0})(SHAPES, 0.5)
    assert str(error.value) == (
        "precrop: costs has no entry for 'three'. Give the cost of every prunable parameter by "
        "path, or exclude it with where=."
    )
