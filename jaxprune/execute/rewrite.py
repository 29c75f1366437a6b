"""Run a jaxpr of which some values are compressed weights."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from jaxprune.execute.moves import MOVES, product
from jaxprune.execute.views import Token
from jaxprune.graph import _jax
from jaxprune.graph.uses import Skipped

Site = tuple[int | str, ...]
_OWN_RULES = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})
_REMAT = frozenset({"remat", "remat2", "checkpoint"})


@dataclasses.dataclass(frozen=True)
class Rewriter:
    """Runs equations; products with compressed weights become sparse ones.

    Attributes:
      implementation: of the products.
      notes: weights that were made dense, where, and why.
      multiplied: paths of weights that some product takes compressed.
    """

    implementation: str | None
    notes: list[Skipped] = dataclasses.field(default_factory=list)
    multiplied: set[str] = dataclasses.field(default_factory=set)

    def run(self, body: _jax.Body, inputs: Sequence[Any], site: Site) -> list[Any]:
        """Return a jaxpr's outputs; compressed weights among them stay so."""
        jaxpr = body.jaxpr
        values = dict(zip(jaxpr.constvars, body.consts, strict=True))
        values.update(zip(jaxpr.invars, inputs, strict=True))

        def read(variable: Any) -> Any:
            return variable.val if _jax.is_literal(variable) else values[variable]

        live = _jax.live_equations(jaxpr)
        for index, (eqn, needed) in enumerate(zip(jaxpr.eqns, live, strict=True)):
            if needed:
                operands = [read(variable) for variable in eqn.invars]
                outputs = self.step(eqn, operands, (*site, index))
                values.update(zip(eqn.outvars, outputs, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def step(self, eqn: Any, operands: list[Any], site: Site) -> list[Any]:
        """Return the outputs of one equation."""
        if not any(isinstance(operand, Token) for operand in operands):
            return _jax.bind(eqn, operands)
        name = eqn.primitive.name
        if name in MOVES and isinstance(operands[0], Token):
            moved = MOVES[name](eqn, operands)
            if moved is not None:
                return [moved]
        elif name == "dot_general":
            result = product(eqn, operands, self.implementation)
            if not isinstance(result, str):
                self.multiplied.update(v.path for v in operands if isinstance(v, Token))
                return [result]
            return _jax.bind(eqn, self.all_dense(operands, name, site, result))
        elif name in _CONTROL:
            return _CONTROL[name](self, eqn, operands, site)
        elif name in _OWN_RULES:
            return self.with_own_rule(eqn, operands, site)
        elif (body := _jax.called(eqn)) is not None:
            run = self.rematerialised if name in _REMAT else self.run_call
            return run(eqn, body, operands, site)
        return _jax.bind(eqn, self.all_dense(operands, name, site))

    def run_call(self, eqn: Any, body: _jax.Body, operands: list[Any], site: Site) -> list[Any]:
        """Run a call in place."""
        del eqn
        return self.run(body, operands, site)

    def dense(self, value: Any, primitive: str, site: Site, reason: str | None = None) -> Any:
        """Return a value as an array, and note it if it was a compressed weight."""
        if not isinstance(value, Token):
            return value
        why = reason or f"{primitive} takes arrays"
        note = Skipped(value.path, primitive, site, why)
        if note not in self.notes:
            self.notes.append(note)
        return value.dense()

    def all_dense(
        self, values: Sequence[Any], primitive: str, site: Site, reason: str | None = None
    ) -> list[Any]:
        """Return values as arrays."""
        return [self.dense(value, primitive, site, reason) for value in values]

    def inside(self, body: _jax.Body, inputs: Sequence[Any], site: Site) -> list[Any]:
        """Run the body of a loop or a branch, whose outputs are arrays."""
        return self.all_dense(self.run(body, inputs, site), "an output", site)

    def with_own_rule(self, eqn: Any, operands: list[Any], site: Site) -> list[Any]:
        """Run a call that has its own derivative, and keep that."""
        body = _jax.called(eqn)
        assert body is not None
        formats, join = _split(operands)

        @jax.custom_vjp
        def call(values: list[Any]) -> list[Any]:
            return self.inside(body, join(values), site)

        def forward(values: list[Any]) -> Any:
            def dense(values: list[Any]) -> list[Any]:
                arrays = [v.dense() if isinstance(v, Token) else v for v in join(values)]
                return _jax.bind(eqn, arrays)

            return jax.vjp(dense, values)

        def backward(back: Callable[..., Any], gradients: list[Any]) -> Any:
            return back(gradients)

        call.defvjp(forward, backward)
        return call(formats)

    def rematerialised(
        self, eqn: Any, body: _jax.Body, operands: list[Any], site: Site
    ) -> list[Any]:
        """Run a call whose results are computed again for its gradient."""
        formats, join = _split(operands)
        prevent = eqn.params["prevent_cse"]
        again = jax.checkpoint(
            lambda values: self.inside(body, join(values), site),
            policy=eqn.params["policy"],
            prevent_cse=prevent if isinstance(prevent, bool) else any(prevent),
        )
        return again(formats)


Join = Callable[[Sequence[Any]], list[Any]]


def _split(operands: Sequence[Any], layers: bool = False) -> tuple[list[Any], Join]:
    """Return formats in place of tokens, and a function that puts the tokens back.

    Args:
      operands: values.
      layers: what is put back is a layer of each.
    """
    formats = [value.matrix if isinstance(value, Token) else value for value in operands]

    def join(values: Sequence[Any]) -> list[Any]:
        return [
            dataclasses.replace(old, matrix=new, dims=old.dims[1:] if layers else old.dims)
            if isinstance(old, Token)
            else new
            for old, new in zip(operands, values, strict=True)
        ]

    return formats, join


def _scan(rewriter: Rewriter, eqn: Any, operands: list[Any], site: Site) -> list[Any]:
    scan = _jax.scan_of(eqn)
    first = scan.consts + scan.carries
    fixed = operands[: scan.consts]
    start = rewriter.all_dense(
        operands[scan.consts : first], "scan", site, "a loop carries it from turn to turn"
    )
    sliced = [
        value
        if not isinstance(value, Token) or value.stacks_along(0)
        else rewriter.dense(value, "scan", site, "the loop slices another axis than the layers")
        for value in operands[first:]
    ]
    formats, join = _split(sliced, layers=True)

    def turn(carry: list[Any], elements: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs = rewriter.inside(scan.body, [*fixed, *carry, *join(elements)], site)
        return outputs[: scan.carries], outputs[scan.carries :]

    carry, outputs = lax.scan(
        turn,
        start,
        formats,
        length=scan.length,
        reverse=scan.reverse,
        unroll=eqn.params["unroll"],
    )
    return [*carry, *outputs]


def _while(rewriter: Rewriter, eqn: Any, operands: list[Any], site: Site) -> list[Any]:
    loop = _jax.while_of(eqn)
    first = loop.test_consts + loop.body_consts
    for_test, for_body = operands[: loop.test_consts], operands[loop.test_consts : first]
    start = rewriter.all_dense(
        operands[first:], "while", site, "a loop carries it from turn to turn"
    )
    return lax.while_loop(
        lambda state: rewriter.inside(loop.test, [*for_test, *state], (*site, "test"))[0],
        lambda state: rewriter.inside(loop.body, [*for_body, *state], (*site, "body")),
        start,
    )


def _cond(rewriter: Rewriter, eqn: Any, operands: list[Any], site: Site) -> list[Any]:
    index, *rest = operands

    def branch(number: int, body: _jax.Body) -> Callable[[], list[Any]]:
        return lambda: rewriter.inside(body, rest, (*site, f"branch {number}"))

    branches = [branch(i, body) for i, body in enumerate(_jax.branches_of(eqn))]
    return lax.switch(index, branches)


_CONTROL: dict[str, Callable[[Rewriter, Any, list[Any], Site], list[Any]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
