"""A weight as matrices ``[*layers, *batch, in, out]``, and back."""

import dataclasses
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from jaxprune.graph.axes import counts, layer_axis
from jaxprune.graph.factors import Factor, merged
from jaxprune.graph.products import FLOWS
from jaxprune.graph.program import Program
from jaxprune.graph.uses import WeightUse


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a parameter's axes make up matrices.

    Attributes:
      shape: of the parameter.
      digits: the shape with axes cut into their digits.
      order: the digits in the order layers, batch, in, out.
      lead: sizes of layers and batch.
      inputs: size of ``in``.
    """

    shape: tuple[int, ...]
    digits: tuple[int, ...]
    order: tuple[int, ...]
    lead: tuple[int, ...]
    inputs: int

    def matrix(self, weight: jax.Array) -> jax.Array:
        """Return the matrices of a weight."""
        outputs = math.prod(self.shape) // math.prod(self.lead) // self.inputs
        moved = jnp.transpose(weight.reshape(self.digits), self.order)
        return moved.reshape(*self.lead, self.inputs, outputs)

    def weight(self, matrix: jax.Array) -> jax.Array:
        """Return the weight that matrices are of."""
        moved = matrix.reshape([self.digits[d] for d in self.order])
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return jnp.transpose(moved, back).reshape(self.shape)


def layout_of(program: Program, path: str) -> Layout:
    """Return how a parameter makes up matrices.

    Raises:
      ValueError: it has no input features, or its uses disagree.
    """
    uses = [use for use in program.uses_of(path) if counts(use)]
    found = {_layout(program, use) for use in uses}
    if len(found) != 1 or None in found:
        why = "its uses disagree" if len(found) > 1 else "it has no whole axes of input features"
        raise ValueError(f"{path!r} cannot be written as matrices: {why}.")
    (layout,) = found
    assert layout is not None
    return layout


_LAYERS, _BATCH, _IN, _OUT = range(4)


def _layout(program: Program, use: WeightUse) -> Layout | None:
    shape = tuple(program.params[use.path].shape)
    layer = layer_axis(program, use.path)
    layers = use.layers or (() if layer is None else (layer,))
    chosen = _one_hot(use)
    kinds = [(f, _BATCH) for f in (*use.batch, *chosen)]
    kinds += [(f, _IN) for f in use.contracted if f not in chosen]
    digits: list[int] = []
    roles: list[int] = []
    for axis, size in enumerate(shape):
        if axis in layers:
            parts = [(size, _LAYERS)]
        else:
            parts = _digits([(f, kind) for f, kind in kinds if f.axis == axis], size)
        if parts is None:
            return None
        if use.groups > 1 and parts == [(size, _OUT)] and axis in use.free_axes:
            parts = [(use.groups, _BATCH), (size // use.groups, _OUT)]
        digits += [n for n, _ in parts]
        roles += [kind for _, kind in parts]
    order = tuple(sorted(range(len(digits)), key=lambda d: (roles[d], d)))
    lead = [digits[d] for d in order if roles[d] in (_LAYERS, _BATCH)]
    inputs = math.prod(digits[d] for d in order if roles[d] == _IN)
    return Layout(shape, tuple(digits), order, tuple(lead), inputs)


def _one_hot(use: WeightUse) -> tuple[Factor, ...]:
    piece = use.piece
    assert piece is not None
    assert use.primitive in FLOWS
    return tuple(f for d in use.one_hot for f in merged(piece.dims[d]))


def _digits(found: Iterable[tuple[Factor, int]], size: int) -> list[tuple[int, int]] | None:
    """Return the sizes and parts of an axis's digits, the slowest first; None if they overlap."""
    parts: list[tuple[int, int]] = []
    left = size
    for factor, kind in sorted(found, key=lambda pair: -pair[0].stride):
        stride, extent = factor.stride, factor.size
        if stride < 1 or factor.start != 0 or left % (stride * extent):
            return None
        if left > stride * extent:
            parts.append((left // (stride * extent), _OUT))
        parts.append((extent, kind))
        left = stride
    return parts + ([(left, _OUT)] if left > 1 or not parts else [])
