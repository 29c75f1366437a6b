"""What the graph says of each model, and that the numbers agree."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import jaxprune
from jaxprune._core import paths
from tests.graph import frameworks, models, oracle
from tests.graph.cases import Axes, Case

MAKERS: tuple[Callable[[], Case], ...] = (
    *(lambda case=case: case for case in models.ALL),
    *frameworks.MAKERS,
)
NAMES = [*(case.name for case in models.ALL), *(make.__name__ for make in frameworks.MAKERS)]


@pytest.fixture(scope="module", params=MAKERS, ids=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param()


@pytest.fixture
def graph(case: Case) -> Any:
    return jaxprune.trace(case.fn, case.params, *case.inputs)


def test_where_selects_what_a_product_sums_over(case: Case, graph: Any):
    assert graph.where().chosen == set(case.axes)


def test_the_axes_are_those_of_the_input_features(case: Case, graph: Any):
    assert {path: graph.axis(path) for path in case.axes} == dict(case.axes)


def test_stacked_layers_are_found(case: Case, graph: Any):
    found = {path: graph.layer_axis(path) for path in case.axes}
    assert {path: axis for path, axis in found.items() if axis is not None} == dict(case.layers)


def test_shapes_are_enough(case: Case, graph: Any):
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "shape") else x,
        (case.params, case.inputs),
    )
    again = jaxprune.trace(case.fn, shapes[0], *shapes[1])
    assert again.uses == graph.uses


def test_a_channel_of_the_weight_is_a_channel_of_its_input(case: Case, graph: Any):
    leaves = {p: x for p, x in paths.flatten(case.params).items() if hasattr(x, "dtype")}
    trial = oracle.Trial(graph, leaves, case.inputs)
    base = trial.of_weights({})
    for path in sorted(set(case.axes) - case.moving):
        changed = False
        for share in (0.0, 0.5, 0.99):
            channels = {p: channel(case.axes[p], leaves[p], share) for p in trial.together(path)}
            of_weights, of_inputs = trial.of_weights(channels), trial.of_inputs(channels)
            for a, b, c in zip(of_weights, of_inputs, base, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=path)
                changed |= not np.allclose(a, c, rtol=1e-3, atol=1e-4)
        assert changed, path


def channel(axes: Axes, leaf: Any, share: float) -> dict[int, int]:
    """An index on each of some axes."""
    given = (axes,) if isinstance(axes, int) else axes
    return {axis: int(leaf.shape[axis] * share) for axis in given}
