"""Run a jaxpr and take statistics on the way: control flow is written anew, the rest is bound."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.graph import _jax
from jaxprune.graph.values import Site

Records = dict[int, Any]
"""Raw statistics by the number of their probe."""


@dataclasses.dataclass(frozen=True)
class Probes:
    """What to take, and where.

    Attributes:
      at: ``site -> numbers`` of the probes of an equation.
      take: ``(number, equation, its operands) -> raw statistics``.
      merge: ``(number, a, b) -> statistics`` of the tokens of both.
      stacked: for each probe, the scans that stack it instead of adding it up.
    """

    at: dict[Site, list[int]]
    take: Callable[[int, Any, Sequence[Any]], Any]
    merge: Callable[[int, Any, Any], Any]
    stacked: dict[int, frozenset[Site]]

    def inside(self, site: Site) -> bool:
        """Tell whether an equation, or one inside it, is probed."""
        return any(probed[: len(site)] == site for probed in self.at)


Outcome = tuple[list[Any], Records]


def evaluate(body: _jax.Body, inputs: Sequence[Any], probes: Probes, site: Site = ()) -> Outcome:
    """Return a jaxpr's outputs and the statistics taken inside."""
    jaxpr = body.jaxpr
    values = dict(zip(jaxpr.constvars, body.consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))
    records: Records = {}

    def read(variable: Any) -> Any:
        return variable.val if _jax.is_literal(variable) else values[variable]

    live = _jax.live_equations(jaxpr)
    for index, (eqn, needed) in enumerate(zip(jaxpr.eqns, live, strict=True)):
        if needed:
            operands = [read(variable) for variable in eqn.invars]
            outputs, found = _step(eqn, operands, probes, (*site, index))
            values.update(zip(eqn.outvars, outputs, strict=True))
            records.update(found)
    return [read(variable) for variable in jaxpr.outvars], records


def _step(eqn: Any, operands: list[Any], probes: Probes, site: Site) -> Outcome:
    if not probes.inside(site):
        return _jax.bind(eqn, operands), {}
    if site in probes.at:
        found = {number: probes.take(number, eqn, operands) for number in probes.at[site]}
        return _jax.bind(eqn, operands), found
    body = _jax.called(eqn)
    if body is not None:
        return evaluate(body, operands, probes, site)
    return _CONTROL[eqn.primitive.name](eqn, operands, probes, site)


def _scan(eqn: Any, operands: list[Any], probes: Probes, site: Site) -> Outcome:
    scan = _jax.scan_of(eqn)
    first = scan.consts + scan.carries
    fixed, start, sliced = operands[: scan.consts], operands[scan.consts : first], operands[first:]

    def run(carry: list[Any], elements: list[Any]) -> tuple[list[Any], list[Any], Records]:
        outputs, found = evaluate(scan.body, [*fixed, *carry, *elements], probes, site)
        return outputs[: scan.carries], outputs[scan.carries :], found

    def turn(state: Any, elements: list[Any]) -> Any:
        carry, total = state
        carry, outputs, found = run(carry, elements)
        kept = {n: raw for n, raw in found.items() if site in probes.stacked[n]}
        return (carry, _added(probes, total, found)), (outputs, kept)

    shapes = jax.eval_shape(lambda c, xs: run(c, [x[0] for x in xs])[2], start, sliced)
    total = {n: _empty(s) for n, s in shapes.items() if site not in probes.stacked[n]}
    (carry, total), (outputs, kept) = lax.scan(
        turn,
        (start, total),
        sliced,
        length=scan.length,
        reverse=scan.reverse,
        unroll=eqn.params["unroll"],
    )
    return [*carry, *outputs], {**total, **kept}


def _while(eqn: Any, operands: list[Any], probes: Probes, site: Site) -> Outcome:
    loop = _jax.while_of(eqn)
    first = loop.test_consts + loop.body_consts
    for_test, for_body = operands[: loop.test_consts], operands[loop.test_consts : first]

    def run(carry: list[Any]) -> Outcome:
        return evaluate(loop.body, [*for_body, *carry], probes, (*site, "body"))

    def test(state: Any) -> Any:
        return evaluate(loop.test, [*for_test, *state[0]], probes, (*site, "test"))[0][0]

    def turn(state: Any) -> Any:
        carry, total = state
        carry, found = run(carry)
        return carry, _added(probes, total, found)

    shapes = jax.eval_shape(lambda carry: run(carry)[1], operands[first:])
    start = operands[first:], {n: _empty(s) for n, s in shapes.items()}
    return lax.while_loop(test, turn, start)


def _cond(eqn: Any, operands: list[Any], probes: Probes, site: Site) -> Outcome:
    index, *rest = operands

    def branch(position: int, body: _jax.Body) -> Callable[..., Outcome]:
        return lambda *args: evaluate(body, args, probes, (*site, f"branch {position}"))

    runs = [branch(i, body) for i, body in enumerate(_jax.branches_of(eqn))]
    shapes: Records = {}
    for run in runs:
        shapes.update(jax.eval_shape(lambda *args: run(*args)[1], *rest))

    def filled(run: Callable[..., Outcome]) -> Callable[..., Outcome]:
        def call(*args: Any) -> Outcome:
            outputs, found = run(*args)
            return outputs, {n: found[n] if n in found else _empty(shapes[n]) for n in shapes}

        return call

    return lax.switch(index, [filled(run) for run in runs], *rest)


def _added(probes: Probes, total: Records, found: Records) -> Records:
    return {n: probes.merge(n, raw, found[n]) for n, raw in total.items()}


def _empty(shapes: Any) -> Any:
    """Return the statistics of no tokens: zeros, by the rule that all statistics keep."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


_CONTROL: dict[str, Callable[[Any, list[Any], Probes, Site], Outcome]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
