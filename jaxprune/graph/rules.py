"""How equations move, change and consume what is known of their operands."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxprune.graph import elementwise, marks, relayout
from jaxprune.graph.factors import Piece
from jaxprune.graph.joining import joined
from jaxprune.graph.meetings import lost_in, note_elementwise, with_step
from jaxprune.graph.product_rules import product
from jaxprune.graph.products import FLOWS
from jaxprune.graph.provenance import Provenance, Rule
from jaxprune.graph.relayout import Lost, spread
from jaxprune.graph.uses import Operand, use_of
from jaxprune.graph.values import LostAt, Value, marks_of, unique
from jaxprune.graph.walk import Context


def _moved(reader: Provenance, eqn: Any, inputs: list[Value], context: Context) -> list[Value]:
    """Read a primitive that moves the values of its first operand about."""
    rule, source = relayout.RULES[eqn.primitive.name], inputs[0]
    outputs = reader.outputs(eqn, inputs)
    pieces: list[list[Piece | None]] = [[] for _ in outputs]
    found: list[list[Piece | None]] = [[] for _ in outputs]
    lost = list(source.lost)
    for piece in source.pieces:
        try:
            parts = rule(eqn, piece, source.shape)
        except Lost as why:
            lost.append(LostAt(piece.path, eqn.primitive.name, context.site, str(why)))
            continue
        for into, part in zip(pieces, parts, strict=True):
            into.append(part and with_step(part, eqn))
    for mark in source.marks:
        try:
            parts = rule(eqn, mark, source.shape)
        except Lost:
            continue
        for into, part in zip(found, parts, strict=True):
            into.append(part)
    return [
        dataclasses.replace(
            out, pieces=unique(p), marks=marks_of(unique(m)), lost=tuple(lost), known=source.known
        )
        for out, p, m in zip(outputs, pieces, found, strict=True)
    ]


def _elementwise(
    reader: Provenance, eqn: Any, inputs: list[Value], context: Context
) -> list[Value]:
    """Read an elementwise primitive: where data meets a weight, that is the weight's use."""
    name = eqn.primitive.name
    if name == "optimization_barrier":  # any number of operands, each its own result
        return [
            dataclasses.replace(v, number=out.number)
            for v, out in zip(inputs, reader.outputs(eqn, inputs), strict=True)
        ]
    outputs = reader.outputs(eqn, inputs)
    zeros = [v.zero for v in inputs]
    shape = outputs[0].shape
    found = marks.through_elementwise(eqn, inputs, zeros)
    if outputs[0].data:
        for position, value in enumerate(inputs):
            if not value.data:
                note_elementwise(reader, eqn, value, position, context)
        return [dataclasses.replace(out, marks=found) for out in outputs]
    pieces = []
    for position, value in enumerate(inputs):
        keeps = elementwise.keeps_zero(name, eqn.params.get("y", 1), position, zeros)
        rest = [path for other in inputs if other is not value for path in other.sources]
        for piece in value.pieces:
            mixed = dict.fromkeys([*piece.mixed, *rest, *(e.path for e in value.lost)])
            at = range(len(shape) - len(value.shape), len(shape))
            wide = spread(piece, value.shape, shape, at)
            mixed.pop(piece.path, None)
            wide = dataclasses.replace(wide, mixed=tuple(mixed))
            pieces.append(with_step(wide, eqn, keeps))
    lost = tuple(dict.fromkeys(entry for value in inputs for entry in value.lost))
    known = _known(name, inputs)
    return [
        dataclasses.replace(out, pieces=unique(pieces), marks=found, lost=lost, known=known)
        for out in outputs
    ]


def _known(name: str, inputs: Sequence[Value]) -> float | None:
    """Fold what is needed to tell a zero."""
    if name in elementwise.QUIET or name in ("convert_element_type", "stop_gradient"):
        return inputs[0].known
    if name == "mul" and any(v.zero for v in inputs):
        return 0.0
    return None


def _dynamic_slice(
    reader: Provenance, eqn: Any, inputs: list[Value], context: Context
) -> list[Value]:
    """Read a slice whose place is known only when the program runs."""
    source, starts = inputs[0], inputs[1:]
    (out,) = reader.outputs(eqn, inputs)
    sizes = eqn.params["slice_sizes"]
    known = [None if v.known is None else int(v.known) for v in starts]
    kept: list[list[Piece | None]] = [[], []]
    lost = list(source.lost)
    for into, some in zip(kept, (source.pieces, source.marks), strict=True):
        for piece in some:
            try:
                ones = (1,) * len(sizes)
                into.append(relayout.window(piece, source.shape, known, sizes, ones))
            except Lost as why:
                lost.append(LostAt(piece.path, eqn.primitive.name, context.site, str(why)))
    pieces = [p and with_step(p, eqn) for p in kept[0]]
    real = {piece.path for piece in source.pieces}
    lost = [entry for entry in lost if entry.path in real or entry in source.lost]
    # Where a slice begins is no data that meets the weight.
    return [
        dataclasses.replace(
            out,
            data=source.data,
            pieces=unique(pieces),
            marks=marks_of(unique(kept[1])),
            lost=tuple(lost),
        )
    ]


def _gather(reader: Provenance, eqn: Any, inputs: list[Value], context: Context) -> list[Value]:
    """Read a lookup: rows of a table are used there, and not followed further."""
    source, indices = inputs[:2]
    (out,) = reader.outputs(eqn, inputs)
    numbers = eqn.params["dimension_numbers"]
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [d for d in range(len(source.shape)) if d not in dropped]
    if not source.data and out.data:
        roles = Operand((), kept, sorted(dropped), ())
        for piece in source.pieces:
            reader.note(
                use_of(
                    piece,
                    eqn,
                    context.site,
                    0,
                    roles,
                    loops=context.loops,
                    control=context.control,
                )
            )
    batch = [d for d in range(len(out.shape)) if d not in numbers.offset_dims]
    keep = [batch.index(d) if d in batch else None for d in range(len(out.shape))]
    found = marks.kept_dims(indices, keep, out.shape)
    lost = () if out.data else lost_in(source, eqn, context, "its rows are gathered")
    return [dataclasses.replace(out, marks=found, lost=lost)]


def _reduction(reader: Provenance, eqn: Any, inputs: list[Value], context: Context) -> list[Value]:
    """Read a reduction: the axes that stay keep their marks."""
    outputs = reader.outputs(eqn, inputs)
    gone = set(eqn.params["axes"])
    lost = [e for v in inputs for e in lost_in(v, eqn, context, "it is summed up")]
    results = []
    for out in outputs:
        keep = [d for d in range(len(inputs[0].shape)) if d not in gone]
        found = marks.kept_dims(inputs[0], keep, out.shape)
        results.append(dataclasses.replace(out, marks=found, lost=() if out.data else tuple(lost)))
    return results


def _iota(reader: Provenance, eqn: Any, inputs: list[Value], context: Context) -> list[Value]:
    """Read an iota."""
    del context
    (out,) = reader.outputs(eqn, inputs)
    return [dataclasses.replace(out, marks=(marks.iota(out.shape, eqn.params["dimension"]),))]


def _pad(reader: Provenance, eqn: Any, inputs: list[Value], context: Context) -> list[Value]:
    """Read padding; with zeros, a weight only moves."""
    source, filler = inputs
    config = eqn.params["padding_config"]
    if source.data or not filler.zero or any(lo < 0 or hi < 0 or i for lo, hi, i in config):
        return _other(reader, eqn, inputs, context)
    (out,) = reader.outputs(eqn, inputs)
    pieces = []
    for piece in source.pieces:
        offsets = tuple(o + lo for o, (lo, _, _) in zip(piece.offsets, config, strict=True))
        pieces.append(with_step(dataclasses.replace(piece, offsets=offsets), eqn))
    return [dataclasses.replace(out, pieces=unique(pieces), lost=source.lost)]


def _other(reader: Provenance, eqn: Any, inputs: list[Value], context: Context) -> list[Value]:
    """Read a primitive without a rule: weights are followed no further."""
    outputs = reader.outputs(eqn, inputs)
    reason = f"{eqn.primitive.name} is not followed"
    lost = tuple(dict.fromkeys(e for v in inputs for e in lost_in(v, eqn, context, reason)))
    if not (outputs and outputs[0].data):
        return [dataclasses.replace(out, lost=lost) for out in outputs]
    for value in inputs:
        if not value.data:
            for path in value.sources:
                reader.skip(path, eqn, context, reason)
    return outputs


def rule_of(primitive: str) -> Rule:
    """Return the rule of a primitive."""
    if primitive in relayout.RULES:
        return _moved
    if primitive in elementwise.NAMES:
        return _elementwise
    return _RULES.get(primitive, _other)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(FLOWS, product),
    "concatenate": joined,
    "stack": joined,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "iota": _iota,
    "pad": _pad,
    **dict.fromkeys(
        (
            *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
            *("argmax", "argmin", "reduce_xor"),
        ),
        _reduction,
    ),
}
