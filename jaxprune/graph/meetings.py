"""What is noted where weights meet data, or go out of sight."""

import dataclasses
from typing import Any

from jaxprune.graph import elementwise
from jaxprune.graph.factors import Piece
from jaxprune.graph.provenance import Provenance
from jaxprune.graph.uses import Operand, use_of
from jaxprune.graph.values import LostAt, Value
from jaxprune.graph.walk import Context


def lost_in(value: Value, eqn: Any, context: Context, reason: str) -> tuple[LostAt, ...]:
    """Return a value's parameters as lost: those of its pieces in this equation."""
    here = [LostAt(p.path, eqn.primitive.name, context.site, reason) for p in value.pieces]
    return tuple(dict.fromkeys([*value.lost, *here]))


def note_elementwise(
    reader: Provenance, eqn: Any, value: Value, position: int, context: Context
) -> None:
    """Note the use of a weight that meets data without being summed over."""
    reader.note_lost(value)
    roles = Operand((), (), range(len(value.shape)), ())
    for piece in value.pieces:
        reader.note(
            use_of(
                piece,
                eqn,
                context.site,
                position,
                roles,
                loops=context.loops,
                control=context.control,
            )
        )


def with_step(piece: Piece, eqn: Any, zero_preserving: bool = True) -> Piece:
    """Return a piece with one more step on its way."""
    name = eqn.primitive.name
    steps = piece.steps if name in elementwise.QUIET else (*piece.steps, name)
    keeps = piece.zero_preserving and zero_preserving
    return dataclasses.replace(piece, steps=steps, zero_preserving=keeps)
