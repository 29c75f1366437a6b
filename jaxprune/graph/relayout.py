"""Primitives that move values about without changing them: what becomes of a piece."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from jaxprune.graph.factors import Dim, Piece, cut, hidden, merged, regroup, repeated

Shape = tuple[int, ...]
Rule = Callable[[Any, Piece, Shape], list["Piece | None"]]
"""``(equation, piece of its operand, operand's shape) -> a piece for each output``; None: gone."""


class Lost(Exception):
    """The weights cannot be followed; the text says why."""


def moved(piece: Piece, dims: Sequence[Dim], offsets: Sequence[int], **more: Any) -> Piece:
    """Return a piece with other dimensions."""
    return dataclasses.replace(piece, dims=tuple(dims), offsets=tuple(offsets), **more)


def picked(piece: Piece, keep: Sequence[int]) -> Piece:
    """Return a piece with some dimensions, in a new order; the others are fixed."""
    gone = [d for i, d in enumerate(piece.dims) if i not in keep]
    fixed = piece.fixed + hidden(gone)
    return moved(
        piece, [piece.dims[i] for i in keep], [piece.offsets[i] for i in keep], fixed=fixed
    )


def spread(piece: Piece, old: Shape, shape: Shape, at: Sequence[int]) -> Piece:
    """Return a piece of a value of shape ``old`` broadcast, its dimensions standing at ``at``."""
    dims: list[Dim] = [repeated(size) for size in shape]
    offsets, fixed = [0] * len(shape), piece.fixed
    for dim, offset, size, place in zip(piece.dims, piece.offsets, old, at, strict=True):
        if size == shape[place]:
            dims[place], offsets[place] = dim, offset
        else:  # a dimension of size 1 is repeated
            fixed += hidden([dim])
    return moved(piece, dims, offsets, fixed=fixed)


def window(
    piece: Piece, shape: Shape, starts: Sequence[int | None], sizes: Shape, strides: Shape
) -> Piece | None:
    """Return the part of a piece that lies in a window of the value, or None if none does."""
    dims, offsets, certain = [], [], piece.certain
    for dim, offset, extent, full, start, size, stride in zip(
        piece.dims, piece.offsets, piece.sizes, shape, starts, sizes, strides, strict=True
    ):
        if size == full and stride == 1:
            part, at = dim, offset
        elif extent == full:
            part, at = cut(dim, start, size, stride), 0
        elif start is None and size == 1 and extent == 1:  # any of the members of a stack
            part, at, certain = dim, 0, False
        elif start is None or stride != 1:
            raise Lost("it takes a part of joined weights that is not known before the run")
        else:
            low, high = max(start, offset), min(start + size, offset + extent)
            if low >= high:
                return None
            part, at = cut(dim, low - offset, high - low), low - start
        if part is None:
            raise Lost("it cuts a merged dimension across its digits")
        dims.append(part)
        offsets.append(at)
    return moved(piece, dims, offsets, certain=certain)


def reshaped(piece: Piece, old: Shape, new: Shape) -> Piece:
    """Return a piece in another shape of the same size."""
    dims: list[Dim] = []
    offsets: list[int] = []
    fixed = piece.fixed
    for left, right in _blocks(old, new):
        if [old[i] for i in left] == [new[j] for j in right]:
            dims += [piece.dims[i] for i in left]
            offsets += [piece.offsets[i] for i in left]
            continue
        if any(piece.sizes[i] != old[i] for i in left):
            raise Lost("it reshapes a dimension along which weights were joined")
        grouped = regroup([piece.dims[i] for i in left], [new[j] for j in right])
        if grouped is None:
            raise Lost("it mixes the digits of its dimensions")
        fixed += hidden([piece.dims[i] for i in left if old[i] == 1])
        dims += [merged(dim) for dim in grouped]
        offsets += [0] * len(right)
    return moved(piece, dims, offsets, fixed=fixed)


def _blocks(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Return the smallest runs of dimensions of equal sizes, old and new."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = ([i], [j]) if i < len(old) and j < len(new) else ([], [])
        if left and old[i] != new[j] and 1 in (old[i], new[j]):
            left, right = ([i], []) if old[i] == 1 else ([], [j])
        elif not left:
            left, right = ([i], []) if i < len(old) else ([], [j])
        i, j = i + len(left), j + len(right)
        while left and right and (a := _size(old, left)) != (b := _size(new, right)):
            if a < b:
                left.append(i)
                i += 1
            else:
                right.append(j)
                j += 1
        blocks.append((left, right))
    return blocks


def _size(shape: Shape, dims: Sequence[int]) -> int:
    return math.prod(shape[i] for i in dims)


def _transpose(eqn: Any, piece: Piece, shape: Shape) -> list[Piece | None]:
    del shape
    return [picked(piece, eqn.params["permutation"])]


def _squeeze(eqn: Any, piece: Piece, shape: Shape) -> list[Piece | None]:
    gone = {d % len(shape) for d in eqn.params["dimensions"]}
    return [picked(piece, [i for i in range(len(shape)) if i not in gone])]


def _expand(eqn: Any, piece: Piece, shape: Shape) -> list[Piece | None]:
    new, at = eqn.outvars[0].aval.shape, eqn.params["broadcast_dimensions"]
    return [spread(piece, shape, new, at)]


def _reshape(eqn: Any, piece: Piece, shape: Shape) -> list[Piece | None]:
    if eqn.params.get("dimensions") is not None:
        raise Lost("it reads its dimensions in another order")
    if math.prod(shape) == 0:
        raise Lost("it is empty")
    return [reshaped(piece, shape, eqn.params["new_sizes"])]


def _slice(eqn: Any, piece: Piece, shape: Shape) -> list[Piece | None]:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(shape)
    sizes = tuple(-(-(b - a) // s) for a, b, s in zip(starts, limits, strides, strict=True))
    return [window(piece, shape, starts, sizes, strides)]


def _split(eqn: Any, piece: Piece, shape: Shape) -> list[Piece | None]:
    axis, sizes = eqn.params["axis"], [int(size) for size in eqn.params["sizes"]]
    starts = itertools.accumulate([0, *sizes[:-1]])
    return [_along(piece, shape, axis, a, n) for a, n in zip(starts, sizes, strict=True)]


def _unstack(eqn: Any, piece: Piece, shape: Shape) -> list[Piece | None]:
    axis = eqn.params["axis"]
    keep = [i for i in range(len(shape)) if i != axis]
    parts = [_along(piece, shape, axis, i, 1) for i in range(shape[axis])]
    return [part and picked(part, keep) for part in parts]


def _along(piece: Piece, shape: Shape, axis: int, start: int, size: int) -> Piece | None:
    starts = [start if i == axis else 0 for i in range(len(shape))]
    sizes = tuple(size if i == axis else n for i, n in enumerate(shape))
    return window(piece, shape, starts, sizes, (1,) * len(shape))


def _reverse(eqn: Any, piece: Piece, shape: Shape) -> list[Piece | None]:
    dims, offsets = list(piece.dims), list(piece.offsets)
    for d in eqn.params["dimensions"]:
        extent = piece.sizes[d]
        part = cut(dims[d], extent - 1, extent, -1)
        if part is None:
            raise Lost("it reverses a merged dimension")
        dims[d], offsets[d] = part, shape[d] - offsets[d] - extent
    return [moved(piece, dims, offsets)]


RULES: dict[str, Rule] = {
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _expand,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "unstack": _unstack,
    "rev": _reverse,
}
