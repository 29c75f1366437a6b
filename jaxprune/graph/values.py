"""What is known of a value of the program: where it comes from, and where weights stand in it."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from jaxprune.graph.factors import Piece, merged

Site = tuple[int | str, ...]
"""Where an equation stands: its index at each level of calls, the outermost first. Branches and
the two halves of a while loop add a word."""


class LostAt(NamedTuple):
    """Where the weights of a parameter went out of sight."""

    path: str
    primitive: str
    site: Site
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """One value of the program.

    Attributes:
      shape: its shape.
      number: equal for equal values: computed by the same primitives from the same inputs.
      data: it depends on an input that is no parameter.
      trained: it depends on a parameter.
      pieces: parts that are weights, as long as no data has met them.
      marks: parts whose dimensions are those of an input, an iota, or a one-hot vector.
      lost: parameters that it depends on, but whose weights cannot be followed to it.
      known: the number that it holds everywhere, if that is known.
      constant: it comes from an array that the function closes over.
    """

    shape: tuple[int, ...]
    number: int
    data: bool = False
    trained: bool = False
    pieces: tuple[Piece, ...] = ()
    marks: tuple[Piece, ...] = ()
    lost: tuple[LostAt, ...] = ()
    known: float | None = None
    constant: bool = False

    @property
    def zero(self) -> bool:
        """Whether it is zero everywhere."""
        return self.known == 0

    @property
    def sources(self) -> tuple[str, ...]:
        """Parameters that a value without data is computed from."""
        found = [piece.path for piece in self.pieces] + [lost.path for lost in self.lost]
        return tuple(dict.fromkeys(found))

    def facts(self) -> tuple[object, ...]:
        """Return what a fixed point compares."""
        pieces, marks = frozenset(self.pieces), frozenset(self.marks)
        return self.data, self.trained, pieces, marks, frozenset(self.lost), self.known


def unique(pieces: Iterable[Piece | None]) -> tuple[Piece, ...]:
    """Return pieces without repetition."""
    return tuple(dict.fromkeys(piece for piece in pieces if piece is not None))


def marks_of(marks: Iterable[Piece], limit: int = 6) -> tuple[Piece, ...]:
    """Return marks without those that say nothing, and without those that others contain."""
    said = [m for m in unique(marks) if any(f.axis is not None for d in m.dims for f in d)]
    kept = [m for m in said if not any(_contains(other, m) for other in said if other != m)]
    return tuple(kept[:limit])


def _contains(mark: Piece, other: Piece) -> bool:
    if mark.path != other.path:
        return False
    pairs = zip(mark.dims, other.dims, strict=True)
    return all(a == b or all(f.axis is None for f in b) for a, b in pairs)


def join(a: Value, b: Value, number: int) -> Value:
    """Return what is known of a value that is either of two."""
    return Value(
        a.shape,
        number,
        data=a.data or b.data,
        trained=a.trained or b.trained,
        pieces=() if a.data or b.data else _either(a.pieces, b.pieces),
        marks=tuple(mark for mark in a.marks if mark in b.marks),
        lost=() if a.data or b.data else tuple(dict.fromkeys(a.lost + b.lost)),
        known=a.known if a.known == b.known else None,
        constant=a.constant or b.constant,
    )


def _either(a: tuple[Piece, ...], b: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """Return the pieces of both; what only one of them has is not certain."""
    both = [piece for piece in a if piece in b]
    rest = [dataclasses.replace(p, certain=False) for p in a + b if p not in both]
    return unique([*both, *rest])


def forgotten(value: Value, primitive: str, site: Site) -> Value:
    """Return a value whose weights are followed no further: a loop moves them in every turn."""
    reason = "a loop moves it in every turn"
    lost = [LostAt(piece.path, primitive, site, reason) for piece in value.pieces]
    both = tuple(dict.fromkeys([*value.lost, *lost]))
    return dataclasses.replace(value, pieces=(), marks=(), lost=both, known=None)


def element(value: Value, number: int, site: Site) -> Value:
    """Return a slice of a value along its first axis, as the scan at a site takes it."""
    length = value.shape[0]
    pieces = [_element(piece, length, site) for piece in value.pieces]
    marks = [_element(mark, length, site) for mark in value.marks]
    return dataclasses.replace(
        value, shape=value.shape[1:], number=number, pieces=unique(pieces), marks=marks_of(marks)
    )


def _element(piece: Piece, length: int, site: Site) -> Piece:
    first = merged(piece.dims[0])
    fixed = piece.fixed + tuple(f._replace(size=1, start=None) for f in first if f.axis is not None)
    whole = piece.sizes[0] == length and len(first) == 1 and first[0].axis is not None
    axes = tuple(f.axis for f in first if f.axis is not None) if whole else ()
    return dataclasses.replace(
        piece,
        dims=piece.dims[1:],
        offsets=piece.offsets[1:],
        fixed=fixed,
        layers=piece.layers + axes,
        sliced_at=piece.sliced_at + (site,) * len(axes),
        certain=piece.certain and piece.sizes[0] == length,
    )
