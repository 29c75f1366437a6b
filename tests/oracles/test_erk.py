"""Erdős–Rényi densities as GraNet, ITOP, rigl and jaxpruner compute them."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxprune import allocation
from jaxprune.types import Allocation, Shapes

Recorded = Callable[[str], Any]
TOLERANCE = 1e-9


def networks(data: Any) -> Iterator[tuple[str, Shapes]]:
    """The recorded networks: name, and shapes by layer (a zero pads a missing axis)."""
    for match in data.matches("(.+)/shapes"):
        rows = data[match[0]].tolist()
        yield match[1], {str(i): tuple(n for n in row if n) for i, row in enumerate(rows)}


def densities(member: Allocation, shapes: Shapes, sparsity: float) -> list[float]:
    return list(member(shapes, sparsity).values())


def floored(shapes: Shapes, sparsity: float) -> float:
    """The total sparsity after rigl has rounded the zeros of every layer down."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    return sum(math.floor(n * sparsity) for n in sizes) / sum(sizes)


def test_the_kernel_densities_of_granet_and_itop_are_ours(recorded: Recorded):
    data = recorded("erk")
    for name, shapes in networks(data):
        for row, density in enumerate(data["densities"].tolist()):
            ours = densities(allocation.erdos_renyi_kernel, shapes, 1.0 - density)
            for source in ("granet", "itop"):
                np.testing.assert_allclose(ours, data[f"{name}/{source}"][row], rtol=TOLERANCE)


def test_those_of_rigl_and_jaxpruner_are_ours_at_their_rounded_budget(recorded: Recorded):
    data = recorded("erk")
    for name, shapes in networks(data):
        for row, density in enumerate(data["densities"].tolist()):
            # They take n_zeros = floor(n * sparsity) of each layer before they solve for epsilon.
            ours = densities(allocation.erdos_renyi_kernel, shapes, floored(shapes, 1.0 - density))
            for source in ("rigl_erk", "jaxpruner"):
                np.testing.assert_allclose(ours, data[f"{name}/{source}"][row], rtol=TOLERANCE)


def test_the_densities_without_kernel_of_rigl_are_ours_at_its_rounded_budget(recorded: Recorded):
    data = recorded("erk")
    for name, shapes in networks(data):
        for row, density in enumerate(data["densities"].tolist()):
            # Both read the last two axes of the shape as given. These shapes are OIHW, so that for
            # convolutions the numbers mean nothing; the arithmetic is the same.
            ours = densities(allocation.erdos_renyi, shapes, floored(shapes, 1.0 - density))
            np.testing.assert_allclose(ours, data[f"{name}/rigl_er"][row], rtol=TOLERANCE)
