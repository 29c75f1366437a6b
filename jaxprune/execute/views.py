"""Compressed matrices in place of weights of any shape, and where their axes are."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.graph.factors import Dim, Factor, regroup, size_of
from jaxprune.graph.matrix import Layout
from jaxprune.kernels.sparse_matmul import Format


@functools.partial(jax.tree_util.register_dataclass, data_fields=["matrix"], meta_fields=["layout"])
@dataclasses.dataclass(frozen=True, repr=False)
class MatrixView:
    """A compressed matrix in place of a weight of another shape.

    An attention's kernel ``[d, heads, head_dim]``, or a weight that torch stores as ``[out, in]``,
    is packed as the matrix ``[in, out]`` that its product sees. A pytree, as the formats are.

    Attributes:
      matrix: a format, ``[in, out]`` or ``[layers, in, out]``.
      layout: how the weight's axes make up the matrix.
    """

    matrix: Any
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.layout.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the weight."""
        return self.matrix.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.matrix.nbytes

    def todense(self) -> jax.Array:
        """Return the dense weight, bit for bit."""
        return self.layout.weight(self.matrix.todense())

    def __repr__(self) -> str:
        return f"MatrixView({list(self.shape)} as {self.matrix!r})"


def is_packed(node: Any) -> bool:
    """Tell whether a node of a tree is a compressed weight (for ``is_leaf``)."""
    return isinstance(node, Format | MatrixView)


LAYERS, IN, OUT = range(3)


class Digit(NamedTuple):
    """A part of a weight's axis, and what it is in the matrix."""

    axis: int
    stride: int
    size: int
    role: int


@dataclasses.dataclass(frozen=True)
class Token:
    """A compressed weight on its way through a program.

    Attributes:
      path: of the weight.
      matrix: the format; of one layer, once a layer has been taken.
      digits: what the weight's axes are in the matrix.
      dims: for each dimension of the value, the digits that it runs through.
    """

    path: str
    matrix: Any
    digits: tuple[Digit, ...]
    dims: tuple[Dim, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return tuple(map(size_of, self.dims))

    def role(self, factor: Factor) -> int:
        """Return what a digit is in the matrix."""
        for digit in self.digits:
            inside = digit.stride <= factor.stride < digit.stride * digit.size
            if digit.axis == factor.axis and inside:
                return digit.role
        raise AssertionError("a factor that is no digit")

    def roles(self, dims: Sequence[int]) -> set[int]:
        """Return what some dimensions are in the matrix."""
        return {self.role(f) for d in dims for f in self.dims[d] if f.size > 1}

    def order(self, factors: Sequence[Factor]) -> list[int]:
        """Return the places of digits, in the matrix' order."""

        def key(i: int) -> tuple[int, int, int]:
            factor = factors[i]
            assert factor.axis is not None
            return self.role(factor), factor.axis, -factor.stride

        return sorted(range(len(factors)), key=key)

    def factors(self, dims: Sequence[int]) -> list[Factor]:
        """Return the digits of some dimensions, one after the other."""
        return [f for d in dims for f in self.dims[d] if f.size > 1]

    def dense(self) -> jax.Array:
        """Return the value."""
        factors = self.factors(range(len(self.dims)))
        order = self.order(factors)
        digits = self.matrix.todense().reshape([factors[i].size for i in order])
        back = sorted(range(len(order)), key=order.__getitem__)
        return jnp.transpose(digits, back).reshape(self.shape)

    def moved(self, dims: Sequence[Dim]) -> "Token":
        """Return the value with other dimensions."""
        return dataclasses.replace(self, dims=tuple(dims))

    def reshaped(self, shape: Sequence[int]) -> "Token | None":
        """Return the value in another shape, or None if that mixes its axes."""
        dims = regroup(self.dims, shape)
        return None if dims is None else self.moved(dims)

    def stacks_along(self, dim: int) -> bool:
        """Tell whether a dimension runs through the layers of the format."""
        stacked = len(self.matrix.shape) == 3 and self.shape[dim] == self.matrix.shape[0]
        return stacked and len(self.dims[dim]) == 1 and self.role(self.dims[dim][0]) == LAYERS

    def layer(self, dim: int, index: Any, *, keep: bool) -> "Token":
        """Return the value of one layer; its dimension stays with size 1, or goes."""

        def take(leaf: jax.Array) -> jax.Array:
            return jax.lax.dynamic_index_in_dim(leaf, index, 0, keepdims=False)

        rest = [() if keep and d == dim else part for d, part in enumerate(self.dims)]
        dims = rest if keep else [part for d, part in enumerate(rest) if d != dim]
        return dataclasses.replace(self, matrix=jax.tree.map(take, self.matrix), dims=tuple(dims))


def token(path: str, weight: Any) -> Token:
    """Return a compressed weight as it comes into a program."""
    if not isinstance(weight, MatrixView):
        roles = (LAYERS, IN, OUT)[-len(weight.shape) :]
        digits = [Digit(a, 1, n, roles[a]) for a, n in enumerate(weight.shape)]
        return Token(path, weight, tuple(digits), _dims(digits, len(digits)))
    digits = digits_of(weight.layout, len(weight.matrix.shape) == 3)
    return Token(path, weight.matrix, tuple(digits), _dims(digits, len(weight.shape)))


def _dims(digits: Sequence[Digit], rank: int) -> tuple[Dim, ...]:
    return tuple(
        tuple(Factor(d.axis, d.stride, d.size) for d in digits if d.axis == axis and d.size > 1)
        for axis in range(rank)
    )


def digits_of(layout: Layout, stacked: bool) -> list[Digit]:
    """Return the digits of a weight, axis by axis, the slowest of each first."""
    roles = [OUT] * len(layout.digits)
    layers, left = int(stacked), layout.inputs
    for place, number in enumerate(layout.order):
        if place < layers:
            roles[number] = LAYERS
        elif left > 1 or layout.digits[number] == 1:
            roles[number] = IN
            left //= layout.digits[number]
    digits: list[Digit] = []
    for axis, size in enumerate(layout.shape):
        left, first = size, len(digits)
        while left > 1 or len(digits) == first:
            extent, role = layout.digits[len(digits)], roles[len(digits)]
            left //= extent
            digits.append(Digit(axis, max(left, 1), extent, role))
    return digits


def trivial(layout: Layout) -> bool:
    """Tell whether a weight is its matrix already."""
    sides = (layout.inputs, math.prod(layout.shape) // layout.inputs // math.prod(layout.lead))
    return layout.order == tuple(range(len(layout.order))) and layout.shape == (
        *layout.lead,
        *sides,
    )
