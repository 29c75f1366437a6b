"""Which dimensions of a value are those of an input, run through an iota, or are one-hot."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxprune.graph import elementwise
from jaxprune.graph.factors import Dim, Piece, repeated, whole
from jaxprune.graph.relayout import spread
from jaxprune.graph.values import Value, marks_of

IOTA, ONE_HOT = "<iota>", "<one-hot>"
_COUNTS = frozenset({"add", "sub", "mul", "neg", "convert_element_type", "copy"})


def iota(shape: Sequence[int], dimension: int) -> Piece:
    """Return the mark of an iota."""
    mark = whole(IOTA, shape)
    dims = [dim if i == dimension else repeated(shape[i]) for i, dim in enumerate(mark.dims)]
    return dataclasses.replace(mark, dims=tuple(dims))


def one_hot_dims(value: Value) -> frozenset[int]:
    """Return the dimensions along which a value is one-hot, or a product with such a vector."""
    marks = [mark for mark in value.marks if mark.path == ONE_HOT]
    return frozenset(i for mark in marks for i, dim in enumerate(mark.dims) if _says(dim))


def through_elementwise(eqn: Any, values: Sequence[Value], zeros: list[bool]) -> tuple[Piece, ...]:
    """Return the marks of an elementwise result."""
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    power = eqn.params.get("y", 1)
    arrays = [v for v in values if v.shape]
    found: list[Piece] = []
    for position, value in enumerate(values):
        for mark in value.marks:
            if len(mark.dims) != len(shape):
                continue
            wide = spread(mark, value.shape, shape, range(len(shape)))
            if mark.path == IOTA:
                kept = name in _COUNTS and len(arrays) == 1
            elif mark.path == ONE_HOT:
                summed = name == "add" and all(mark in other.marks for other in values)
                hot_case = name == "select_n" and position == 0 and any(zeros[1:])
                kept = summed or hot_case or elementwise.keeps_zero(name, power, position, zeros)
            else:
                kept = True
            found += [wide] if kept else []
    if name == "eq":
        found += _compared(values, shape)
    return marks_of(found)


def _compared(values: Sequence[Value], shape: Sequence[int]) -> list[Piece]:
    """Return one-hot marks: of an iota compared with what does not run along it."""
    found = []
    for value, other in (values, values[::-1]):
        for mark in value.marks:
            if mark.path == IOTA and other.data and len(mark.dims) == len(shape):
                wide = spread(mark, value.shape, tuple(shape), range(len(shape)))
                along = [i for i, dim in enumerate(wide.dims) if _says(dim)]
                if other.shape == () or all(other.shape[i] == 1 or _flat(other, i) for i in along):
                    found.append(dataclasses.replace(wide, path=ONE_HOT))
    return found


def _flat(value: Value, i: int) -> bool:
    """Whether some mark says that a value repeats itself along a dimension."""
    inputs = [mark for mark in value.marks if mark.path not in (IOTA, ONE_HOT)]
    return bool(inputs) and all(_repeats(mark.dims[i]) for mark in inputs)


def kept_dims(value: Value, keep: Sequence[int | None], shape: Sequence[int]) -> tuple[Piece, ...]:
    """Return the marks of a result whose dimension j is dimension ``keep[j]`` of a value."""
    found = []
    for mark in value.marks:
        lost = [d for i, d in enumerate(mark.dims) if i not in keep]
        if mark.path in (IOTA, ONE_HOT) and any(map(_says, lost)):
            continue
        dims = [
            mark.dims[i] if i is not None else repeated(size)
            for i, size in zip(keep, shape, strict=True)
        ]
        offsets = [0 if i is None else mark.offsets[i] for i in keep]
        found.append(dataclasses.replace(mark, dims=tuple(dims), offsets=tuple(offsets)))
    return marks_of(found)


def _says(dim: Dim) -> bool:
    return any(f.axis is not None for f in dim)


def _repeats(dim: Dim) -> bool:
    return not _says(dim)
