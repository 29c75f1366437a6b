"""Rules of matrix products and convolutions, where weights are used."""

import dataclasses
from typing import Any

from jaxprune.graph import marks
from jaxprune.graph.meetings import lost_in
from jaxprune.graph.products import FLOWS
from jaxprune.graph.provenance import Provenance
from jaxprune.graph.uses import Operand, use_of
from jaxprune.graph.values import LostAt, Value, marks_of
from jaxprune.graph.walk import Context


def product(reader: Provenance, eqn: Any, inputs: list[Value], context: Context) -> list[Value]:
    """Read a matrix product or a convolution."""
    flow = FLOWS[eqn.primitive.name](eqn)
    outputs = reader.outputs(eqn, inputs)
    reader.note_gradients(context, sum(v.trained for v in inputs[:2]))
    lost: tuple[LostAt, ...] = ()
    for position, (value, other) in enumerate(((inputs[0], inputs[1]), (inputs[1], inputs[0]))):
        if value.data:
            continue
        _note_product(reader, eqn, value, other, position, flow.roles[position], context)
        lost += lost_in(value, eqn, context, "its product with another parameter is used")
    found = [
        mark
        for value, keep in zip(inputs[:2], flow.kept, strict=True)
        for mark in marks.kept_dims(value, keep, outputs[0].shape)
    ]
    if outputs[0].data:
        lost = ()
    return [dataclasses.replace(out, marks=marks_of(found), lost=lost) for out in outputs]


def _note_product(
    reader: Provenance,
    eqn: Any,
    value: Value,
    other: Value,
    position: int,
    roles: Operand | None,
    context: Context,
) -> None:
    """Note the uses of the weights in one operand, and what is hidden in it."""
    if roles is None:
        for path in value.sources:
            reader.skip(path, eqn, context, f"it stands where {eqn.primitive.name} has its input")
        return
    reader.note_lost(value)
    one_hot = marks.one_hot_dims(other)
    pairs = zip(roles.contracted, roles.partners, strict=True)
    chosen = {mine for mine, theirs in pairs if theirs in one_hot}
    features = [d for d in roles.features if d not in chosen]
    for piece in value.pieces:
        reader.note(
            use_of(
                piece,
                eqn,
                context.site,
                position,
                roles._replace(features=features),
                loops=context.loops,
                control=context.control,
                groups=eqn.params.get("feature_group_count", 1),
                input=other.number,
                from_data=other.data,
                trains_input=other.trained,
                marks=other.marks,
                one_hot=frozenset(chosen),
            )
        )
    if not other.data:
        return
    visible = {piece.path for piece in value.pieces}
    for entry in value.lost:
        if entry.path not in visible and entry.primitive not in FLOWS:
            reader.skip(
                entry.path,
                eqn,
                context,
                f"lost at {entry.primitive} {entry.site}: {entry.reason}",
            )
    if value.constant and not value.sources:
        text = " × ".join(map(str, value.shape))
        reader.skip(
            f"<constant {text}>",
            eqn,
            context,
            "an array that the function closes over is multiplied with data: "
            "if it is a weight, pass it in params",
        )
