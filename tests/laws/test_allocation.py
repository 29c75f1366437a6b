"""What holds for every allocation."""

import itertools
import math

import pytest

from tests.members import ALLOCATIONS, Row

SHAPES = {
    "stem/kernel": (3, 3, 3, 16),
    "body/kernel": (64, 128),
    "twin/kernel": (64, 128),
    "wide/kernel": (3, 3, 64, 256),
    "head/kernel": (128, 10),
}
SPARSITIES = (0.0, 0.1, 0.5, 0.8, 0.9, 0.98, 0.999)
IN_REACH = SPARSITIES[:-1]  # of those that keep a layer dense


def rows(*without: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "row", [row for row in ALLOCATIONS if not row.needs & set(without)], ids=repr
    )


def reached(row: Row) -> tuple[float, ...]:
    return IN_REACH if "dense layers" in row.needs else SPARSITIES


def with_sparsities(*without: str) -> pytest.MarkDecorator:
    members = [row for row in ALLOCATIONS if not row.needs & set(without)]
    pairs = [(row, sparsity) for row in members for sparsity in reached(row)]
    return pytest.mark.parametrize(("row", "sparsity"), pairs, ids=repr)


every = rows()
unranked = rows("scores")
by_shape = rows("scores", "names")


def total(densities: dict[str, float]) -> float:
    sizes = {path: math.prod(shape) for path, shape in SHAPES.items()}
    return sum(d * sizes[p] for p, d in densities.items()) / sum(sizes.values())


@with_sparsities("scores")
def test_densities_are_floats_in_the_unit_interval_in_the_order_of_the_shapes(
    row: Row, sparsity: float
):
    densities = row.make()(SHAPES, sparsity)
    assert list(densities) == list(SHAPES)
    assert all(type(d) is float and 0.0 < d <= 1.0 for d in densities.values())


@with_sparsities("scores", "names")
def test_the_total_is_exact(row: Row, sparsity: float):
    assert total(row.make()(SHAPES, sparsity)) == pytest.approx(1.0 - sparsity, rel=1e-12)


@by_shape
def test_nothing_is_pruned_at_sparsity_0(row: Row):
    assert set(row.make()(SHAPES, 0.0).values()) == {1.0}


@unranked
def test_no_layer_gains_when_the_sparsity_rises(row: Row):
    found = [row.make()(SHAPES, sparsity) for sparsity in reached(row)]
    for before, after in itertools.pairwise(found):
        assert all(after[path] <= before[path] + 1e-12 for path in SHAPES)


@unranked
def test_the_order_of_the_layers_does_not_matter(row: Row):
    mirrored = dict(reversed(SHAPES.items()))
    assert row.make()(mirrored, 0.9) == pytest.approx(row.make()(SHAPES, 0.9), rel=1e-12)


@unranked
def test_equal_layers_are_treated_alike(row: Row):
    densities = row.make()(SHAPES, 0.9)
    assert densities["body/kernel"] == densities["twin/kernel"]


@unranked
def test_no_layers_have_no_densities(row: Row):
    assert row.make()({}, 0.5) == {}


@every
def test_it_is_a_value(row: Row):
    assert row.make() == row.make()
    assert hash(row.make()) == hash(row.make())
    assert repr(row.make()) == repr(row.make())
    assert " at 0x" not in repr(row.make())
