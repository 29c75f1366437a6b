"""Where each dimension of a relaid weight comes from: digits of a mixed radix."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple


class Factor(NamedTuple):
    """A digit that counts along an axis of a parameter.

    A dimension of a view is a tuple of factors, the slowest first. Where its digits are ``d``, the
    parameter is read at ``Σ start + d · stride`` over the factors of each axis.

    Attributes:
      axis: axis of the parameter; None for a dimension along which the view repeats itself.
      stride: step along the axis.
      size: number of steps.
      start: index of the first step; None where it is known only when the program runs.
    """

    axis: int | None
    stride: int
    size: int
    start: int | None = 0


Dim = tuple[Factor, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A part of a value that is one parameter's weights, moved about.

    Attributes:
      path: of the parameter.
      dims: for each dimension of the value, the factors of the part.
      offsets: for each dimension of the value, where the part begins.
      fixed: factors that no dimension shows any more: a layer of a stack, an indexed axis.
      layers: axes that a scan slices, the outermost first.
      sliced_at: where each of those scans stands.
      mixed: other parameters that the values are computed from.
      steps: primitives on the way.
      zero_preserving: a zero in the parameter is a zero here.
      certain: the part is these weights whenever the program comes by, not now and then.
    """

    path: str
    dims: tuple[Dim, ...]
    offsets: tuple[int, ...]
    fixed: tuple[Factor, ...] = ()
    layers: tuple[int, ...] = ()
    sliced_at: tuple[tuple[int | str, ...], ...] = ()
    mixed: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    zero_preserving: bool = True
    certain: bool = True

    @property
    def sizes(self) -> tuple[int, ...]:
        """Extent of the part along each dimension."""
        return tuple(size_of(dim) for dim in self.dims)


def whole(path: str, shape: Sequence[int]) -> Piece:
    """Return a parameter as it comes in."""
    dims = tuple((Factor(axis, 1, size),) for axis, size in enumerate(shape))
    return Piece(path, dims, (0,) * len(dims))


def size_of(dim: Dim) -> int:
    """Return the extent of a dimension."""
    return math.prod(factor.size for factor in dim)


def repeated(size: int) -> Dim:
    """Return a dimension along which a view repeats itself."""
    return () if size == 1 else (Factor(None, 1, size),)


def cut(dim: Dim, start: int | None, size: int, stride: int = 1) -> Dim | None:
    """Return a range of a dimension, or None if it is no product of digits.

    Args:
      dim: the dimension.
      start: first index; None if it is not known.
      size: length of the range.
      stride: step; may be negative.
    """
    if start == 0 and stride == 1 and size == size_of(dim):
        return dim
    if not dim:
        return dim  # of size 1
    if len(dim) == 1:
        return (_cut_one(dim[0], start, size, stride),)
    major, minor = dim[:1], dim[1:]
    inner = size_of(minor)
    if start is None:
        known = size == 1 or None
        return known and tuple(_cut_one(factor, None, 1, 1) for factor in dim)
    if stride != 1:
        return None
    if start % inner == 0 and size % inner == 0:
        outer = cut(major, start // inner, size // inner)
        return None if outer is None else outer + minor
    if start // inner == (start + size - 1) // inner:
        outer, rest = cut(major, start // inner, 1), cut(minor, start % inner, size)
        return None if outer is None or rest is None else outer + rest
    return None


def _cut_one(factor: Factor, start: int | None, size: int, stride: int) -> Factor:
    if factor.axis is None:
        return factor._replace(size=size)
    first = None if start is None or factor.start is None else factor.start + start * factor.stride
    return Factor(factor.axis, factor.stride * stride, size, first)


def regroup(dims: Sequence[Dim], sizes: Sequence[int]) -> list[Dim] | None:
    """Return the same digits as dimensions of other sizes, or None if they mix."""
    waiting = [factor for dim in dims for factor in dim if factor.size > 1][::-1]
    result: list[Dim] = []
    for size in sizes:
        taken: list[Factor] = []
        left = size
        while left > 1:
            factor = waiting.pop()
            if factor.size > left and factor.size % left == 0:
                factor, inner = _split(factor, factor.size // left)
                waiting.append(inner)
            if left % factor.size:
                return None
            left //= factor.size
            taken.append(factor)
        result.append(tuple(taken))
    return result


def _split(factor: Factor, inner: int) -> tuple[Factor, Factor]:
    outer = Factor(factor.axis, factor.stride * inner, factor.size // inner, factor.start)
    return outer, Factor(factor.axis, factor.stride, inner)


def merged(dim: Dim) -> Dim:
    """Return a dimension with neighbouring digits of one axis written as one."""
    result: list[Factor] = []
    for factor in dim:
        last = result[-1] if result else None
        if (
            last is not None
            and last.axis == factor.axis
            and last.stride == factor.stride * factor.size
        ):
            unknown = last.start is None or factor.start is None
            start = None if unknown else (last.start or 0) + (factor.start or 0)
            result[-1] = Factor(factor.axis, factor.stride, last.size * factor.size, start)
        else:
            result.append(factor)
    return tuple(result)


def hidden(dims: Sequence[Dim]) -> tuple[Factor, ...]:
    """Return the digits of dimensions that are dropped, as far as they say something."""
    return tuple(f for dim in dims for f in dim if f.axis is not None)
