"""One walker through a jaxpr: calls in place, loops to their fixed point, all branches."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from jaxprune.graph import _jax
from jaxprune.graph.values import Site, Value, forgotten

_ROUNDS = 8  # of a loop until what is known of its carry no longer changes


@dataclasses.dataclass(frozen=True)
class Context:
    """Where the walker is.

    Attributes:
      site: of the equation.
      loops: how often each enclosing loop runs; None if only the data says.
      control: the innermost loop or branch, inside which all equations run together.
    """

    site: Site = ()
    loops: tuple[int | None, ...] = ()
    control: Site = ()

    def at(self, *step: int | str) -> "Context":
        """Return the context of an equation inside."""
        return dataclasses.replace(self, site=self.site + step)

    def inside(self, *step: int | str, times: tuple[int | None, ...] = ()) -> "Context":
        """Return the context of a body that does not run just once with what surrounds it."""
        site = self.site + step
        return Context(site, self.loops + times, site)


class Reader(Protocol):
    """What is known of values, and how equations change it."""

    def constant(self, value: Any) -> Value:
        """Return what is known of a constant."""
        ...

    def equation(self, eqn: Any, inputs: list[Value], context: Context) -> list[Value]:
        """Return what is known of an equation's outputs."""
        ...

    def element(self, value: Value, context: Context, position: int) -> Value:
        """Return what is known of a slice that a scan takes along the first axis."""
        ...

    def stacked(self, value: Value, context: Context, position: int) -> Value:
        """Return what is known of the slices that a scan puts out, stacked."""
        ...

    def renamed(self, value: Value, context: Context, position: int) -> Value:
        """Return the same knowledge of another value: one that differs from turn to turn."""
        ...

    def joined(self, a: Value, b: Value, context: Context, position: int) -> Value:
        """Return what is known of a value that is either of two."""
        ...

    def quiet(self, run: Callable[[], list[Value]]) -> list[Value]:
        """Run without noting what is seen: a loop's carry is not known yet."""
        ...


def walk(reader: Reader, body: _jax.Body, inputs: Sequence[Value], context: Context) -> list[Value]:
    """Read a jaxpr's equations in order; return what is known of its outputs."""
    jaxpr = body.jaxpr
    known = dict(zip(jaxpr.constvars, map(reader.constant, body.consts), strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> Value:
        if _jax.is_literal(variable):
            return reader.constant(variable.val)
        return known[variable]

    live = _jax.live_equations(jaxpr)
    for index, (eqn, needed) in enumerate(zip(jaxpr.eqns, live, strict=True)):
        if needed:
            values = [read(variable) for variable in eqn.invars]
            outputs = step(reader, eqn, values, context.at(index))
            known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def step(reader: Reader, eqn: Any, inputs: list[Value], context: Context) -> list[Value]:
    """Read one equation, control flow included."""
    rule = _CONTROL.get(eqn.primitive.name)
    if rule is not None:
        return rule(reader, eqn, inputs, context)
    body = _jax.called(eqn)
    if body is not None:
        return walk(reader, body, inputs, context)
    return reader.equation(eqn, inputs, context)


def _loop(
    reader: Reader,
    turn: Callable[[list[Value]], list[Value]],
    start: list[Value],
    context: Context,
) -> tuple[list[Value], list[Value]]:
    """Return the carry that holds in every turn, and the outputs of a turn."""
    carry = [reader.renamed(value, context, i) for i, value in enumerate(start)]
    count = len(carry)
    for _ in range(_ROUNDS):
        after = reader.quiet(lambda: turn(carry))
        wider = [
            reader.joined(a, b, context, i)
            for i, (a, b) in enumerate(zip(carry, after[:count], strict=True))
        ]
        if [value.facts() for value in wider] == [value.facts() for value in carry]:
            break
        carry = wider
    else:
        carry = _settled(reader, turn, carry, context)
    return carry, turn(carry)


def _settled(
    reader: Reader,
    turn: Callable[[list[Value]], list[Value]],
    carry: list[Value],
    context: Context,
) -> list[Value]:
    """Return a carry that holds in every turn, its weights followed no further."""
    carry = [forgotten(value, "loop", context.site) for value in carry]
    while True:
        after = reader.quiet(lambda: turn(carry))
        wider = [
            forgotten(reader.joined(a, b, context, i), "loop", context.site)
            for i, (a, b) in enumerate(zip(carry, after[: len(carry)], strict=True))
        ]
        if [value.facts() for value in wider] == [value.facts() for value in carry]:
            return carry
        carry = wider


def _scan(reader: Reader, eqn: Any, inputs: list[Value], context: Context) -> list[Value]:
    scan = _jax.scan_of(eqn)
    inside = context.inside(times=(scan.length,))
    first = scan.consts + scan.carries
    fixed, start, sliced = inputs[: scan.consts], inputs[scan.consts : first], inputs[first:]
    elements = [reader.element(v, inside, first + i) for i, v in enumerate(sliced)]

    def turn(carry: list[Value]) -> list[Value]:
        return walk(reader, scan.body, [*fixed, *carry, *elements], inside)

    carry, outputs = _loop(reader, turn, start, inside)
    out = [reader.renamed(v, context.inside("out"), i) for i, v in enumerate(carry)]
    rest = enumerate(outputs[scan.carries :], scan.carries)
    return out + [reader.stacked(v, context.inside("out"), i) for i, v in rest]


def _while(reader: Reader, eqn: Any, inputs: list[Value], context: Context) -> list[Value]:
    loop = _jax.while_of(eqn)
    first = loop.test_consts + loop.body_consts
    inside = context.inside("body", times=(None,))
    for_test, for_body = inputs[: loop.test_consts], inputs[loop.test_consts : first]

    def turn(carry: list[Value]) -> list[Value]:
        return walk(reader, loop.body, [*for_body, *carry], inside)

    carry, _ = _loop(reader, turn, inputs[first:], inside)
    walk(reader, loop.test, [*for_test, *carry], context.inside("test", times=(None,)))
    return [reader.renamed(v, context.inside("out"), i) for i, v in enumerate(carry)]


def _cond(reader: Reader, eqn: Any, inputs: list[Value], context: Context) -> list[Value]:
    runs = [
        walk(reader, branch, inputs[1:], context.inside(f"branch {i}"))
        for i, branch in enumerate(_jax.branches_of(eqn))
    ]
    result = runs[0]
    for other in runs[1:]:
        result = [
            reader.joined(a, b, context, i)
            for i, (a, b) in enumerate(zip(result, other, strict=True))
        ]
    return result


_CONTROL: dict[str, Callable[[Reader, Any, list[Value], Context], list[Value]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
