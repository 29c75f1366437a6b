"""Rules of concatenations and stacks."""

import dataclasses
from typing import Any

from jaxprune.graph.factors import Piece, repeated
from jaxprune.graph.meetings import note_elementwise, with_step
from jaxprune.graph.provenance import Provenance
from jaxprune.graph.values import Value, marks_of, unique
from jaxprune.graph.walk import Context


def joined(reader: Provenance, eqn: Any, inputs: list[Value], context: Context) -> list[Value]:
    """Read a concatenation or a stack; a weight that is put beside data is used there."""
    (out,) = reader.outputs(eqn, inputs)
    stacks = eqn.primitive.name == "stack"
    axis = eqn.params["axis" if stacks else "dimension"]
    pieces: list[Piece] = []
    found: list[tuple[Piece, ...]] = []
    offset = 0
    for position, value in enumerate(inputs):
        if out.data and not value.data:
            note_elementwise(reader, eqn, value, position, context)
        pieces += [_placed(with_step(p, eqn), axis, offset, stacks) for p in value.pieces]
        found.append(tuple(_along(m, out.shape, axis, stacks) for m in value.marks))
        offset += 1 if stacks else value.shape[axis]
    shared = [m for m in found[0] if all(m in other for other in found[1:])]
    lost = tuple(dict.fromkeys(entry for value in inputs for entry in value.lost))
    if out.data:
        return [dataclasses.replace(out, marks=marks_of(shared))]
    return [dataclasses.replace(out, pieces=unique(pieces), marks=marks_of(shared), lost=lost)]


def _placed(piece: Piece, axis: int, offset: int, stacks: bool) -> Piece:
    if stacks:
        dims = (*piece.dims[:axis], (), *piece.dims[axis:])
        offsets = (*piece.offsets[:axis], offset, *piece.offsets[axis:])
        return dataclasses.replace(piece, dims=dims, offsets=offsets)
    offsets = list(piece.offsets)
    offsets[axis] += offset
    return dataclasses.replace(piece, offsets=tuple(offsets))


def _along(mark: Piece, shape: tuple[int, ...], axis: int, stacks: bool) -> Piece:
    """Return a mark that holds for all the parts: it says nothing along the joined axis."""
    dims, offsets = list(mark.dims), list(mark.offsets)
    if stacks:
        dims.insert(axis, ())
        offsets.insert(axis, 0)
    dims[axis], offsets[axis] = repeated(shape[axis]), 0
    return dataclasses.replace(mark, dims=tuple(dims), offsets=tuple(offsets))
