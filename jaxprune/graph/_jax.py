"""All that is known of JAX's internals, which differ from version to version, stands here."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

Equation = Any
Variable = Any
Site = tuple[int | str, ...]

# Calls whose body runs once, in place; by the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_vmap_call": "call",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "composite": "jaxpr",
}


class Body(NamedTuple):
    """A jaxpr and the constants that it closes over."""

    jaxpr: Any
    consts: Sequence[Any]


class Scan(NamedTuple):
    """What a scan runs, and how its operands divide."""

    body: Body
    consts: int
    carries: int
    length: int
    reverse: bool


class While(NamedTuple):
    """What a while loop runs, and how its operands divide."""

    test: Body
    body: Body
    test_consts: int
    body_consts: int


def body_of(jaxpr: Any) -> Body:
    """Return a jaxpr and its constants, closed or not."""
    if hasattr(jaxpr, "jaxpr"):
        return Body(jaxpr.jaxpr, jaxpr.consts)
    return Body(jaxpr, getattr(jaxpr, "consts", ()))


def called(eqn: Equation) -> Body | None:
    """Return the body of a call that runs once, or None for any other equation."""
    key = _CALLS.get(eqn.primitive.name)
    return None if key is None else body_of(eqn.params[key])


def scan_of(eqn: Equation) -> Scan:
    """Return the parts of a scan."""
    p = eqn.params
    if "ft_in" in p:  # since 0.12 a tree of (consts, carries, sliced)
        consts, carries, _ = (len(list(part)) for part in p["ft_in"].unpack())
    else:
        consts, carries = p["num_consts"], p["num_carry"]
    return Scan(body_of(p["jaxpr"]), consts, carries, p["length"], p["reverse"])


def while_of(eqn: Equation) -> While:
    """Return the parts of a while loop."""
    p = eqn.params
    test, body = body_of(p["cond_jaxpr"]), body_of(p["body_jaxpr"])
    return While(test, body, p["cond_nconsts"], p["body_nconsts"])


def branches_of(eqn: Equation) -> list[Body]:
    """Return the branches of a conditional."""
    return [body_of(branch) for branch in eqn.params["branches"]]


def equations(
    body: Body, site: Site = (), loops: tuple[int | None, ...] = ()
) -> Iterator[tuple[Site, Equation, tuple[int | None, ...]]]:
    """Return every live equation that is no call and no loop: its place, itself, how often it runs.

    Its place is the index of the equation at each level. Branches and the halves of a while loop
    add a word; a loop whose length the data decides runs None times.
    """
    jaxpr = body.jaxpr
    for index, (eqn, live) in enumerate(zip(jaxpr.eqns, live_equations(jaxpr), strict=True)):
        here = (*site, index)
        inner = called(eqn)
        if not live:
            continue
        if inner is not None:
            yield from equations(inner, here, loops)
        elif eqn.primitive.name == "scan":
            scan = scan_of(eqn)
            yield from equations(scan.body, here, (*loops, scan.length))
        elif eqn.primitive.name == "while":
            loop = while_of(eqn)
            yield from equations(loop.body, (*here, "body"), (*loops, None))
            yield from equations(loop.test, (*here, "test"), (*loops, None))
        elif eqn.primitive.name == "cond":
            for i, branch in enumerate(branches_of(eqn)):
                yield from equations(branch, (*here, f"branch {i}"), loops)
        else:
            yield here, eqn, loops


def holds_jaxprs(eqn: Equation) -> bool:
    """Tell whether an equation runs jaxprs that are not understood here."""
    return any(True for _ in bodies_of(eqn))


def is_literal(variable: Variable) -> bool:
    """Tell a constant that is written into an equation from a variable."""
    return isinstance(variable, core.Literal)


def is_dropped(variable: Variable) -> bool:
    """Tell whether nobody can read an output."""
    return isinstance(variable, core.DropVar)


def live_equations(jaxpr: Any) -> list[bool]:
    """Tell for each equation whether an output, or an effect, needs it."""
    needed = {v for v in jaxpr.outvars if not is_literal(v)}
    live = []
    for eqn in reversed(jaxpr.eqns):
        wanted = bool(eqn.effects) or any(v in needed for v in eqn.outvars)
        live.append(wanted)
        if wanted:
            needed.update(v for v in eqn.invars if not is_literal(v))
    return live[::-1]


def bind(eqn: Equation, values: Sequence[Any]) -> list[Any]:
    """Run one equation as it stands, with its custom derivative rules."""
    params = eqn.primitive.get_bind_params(eqn.params)
    with eqn.ctx.manager:
        result = eqn.primitive.bind(*values, **params)
    return list(result) if eqn.primitive.multiple_results else [result]


def is_array(leaf: Any) -> bool:
    """Tell arrays and their shapes from what is held as it is: numbers, flags, functions, text."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def jaxpr_of(function: Any, leaves: Sequence[Any]) -> Body:
    """Trace a function of arrays or shapes."""
    return body_of(jax.make_jaxpr(function)(*leaves))


# Calls that mean no more than the equations in them.
_PLAIN = frozenset({"jit", "pjit", "closed_call", "core_call"})


def is_plain_call(eqn: Equation) -> bool:
    """Tell whether a call can be replaced by its body: it has no rules of its own."""
    return eqn.primitive.name in _PLAIN


def is_jaxpr(value: Any) -> bool:
    """Tell whether a parameter of an equation is a jaxpr."""
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def bodies_of(eqn: Equation) -> Iterator[Body]:
    """Return all jaxprs that an equation runs."""
    for param in eqn.params.values():
        for value in param if isinstance(param, tuple | list) else [param]:
            if is_jaxpr(value):
                yield body_of(value)
