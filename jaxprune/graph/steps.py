"""A traced function as one flat list of steps, which can be cut and run in parts."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.graph import _jax
from jaxprune.graph.uses import PRODUCTS

_BY_LAYER = frozenset({"convert_element_type", "mul", "copy"})
"""What may happen to stacked parameters before the scan over them, and can be done by layer."""

Value = int
"""Number of a value: of an input, a constant, or the output of a step."""


@dataclasses.dataclass(frozen=True)
class Literal:
    """A constant that is written into a step."""

    value: Any


Ref = Value | Literal


class Place(NamedTuple):
    """A parameter, or one layer of a parameter that stacks layers along its first axis."""

    number: int  # among the parameters, in tree order
    layer: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One equation, with values for its variables.

    Attributes:
      key: equal for steps that do the same with values of the same shapes.
      call: ``(*operands) -> outputs``.
      reads: what its operands are.
      writes: its outputs.
      product: whether a matrix product or a convolution runs in it.
    """

    key: Any
    call: Callable[..., Sequence[Any]]
    reads: tuple[Ref, ...]
    writes: tuple[Value, ...]
    product: bool = False

    def values(self) -> list[Value]:
        """Return the values that it reads."""
        return [ref for ref in self.reads if not isinstance(ref, Literal)]


@dataclasses.dataclass(frozen=True)
class Steps:
    """A flat program.

    Attributes:
      steps: in order; each one is needed.
      params: values that are parameters, or layers of them.
      inputs: values of the function's other arrays.
      constants: arrays that the function closes over, by value.
      outputs: what the function returns.
      shapes: shape and dtype of every value.
    """

    steps: tuple[Step, ...]
    params: Mapping[Value, Place]
    inputs: tuple[Value, ...]
    constants: Mapping[Value, Any]
    outputs: tuple[Ref, ...]
    shapes: Mapping[Value, jax.ShapeDtypeStruct]

    @property
    def results(self) -> frozenset[Value]:
        """The outputs that are values."""
        return frozenset(ref for ref in self.outputs if not isinstance(ref, Literal))

    def returned(self, step: Step) -> bool:
        """Tell whether the function returns something that a step writes."""
        return not self.results.isdisjoint(step.writes)

    def nbytes(self, value: Value) -> int:
        """Return the size of a value."""
        shape = self.shapes[value]
        return int(np.prod(shape.shape, dtype=np.int64)) * shape.dtype.itemsize


def flatten(body: _jax.Body, params: int) -> Steps:
    """Return a traced function as steps: calls inline, and scans over stacked parameters unrolled.

    Args:
      body: the function.
      params: how many of its inputs are parameters; they come first.
    """
    flat = _Flattening()
    inputs = [flat.new(v.aval) for v in body.jaxpr.invars]
    flat.params = {value: Place(value) for value in inputs[:params]}
    outputs = tuple(flat.computed(ref) for ref in flat.body(body, inputs))
    needed = {ref for ref in outputs if not isinstance(ref, Literal)}
    kept: list[Step] = []
    for step in reversed(flat.steps):
        if needed.intersection(step.writes):
            needed.update(step.values())
            kept.append(step)
    rest = tuple(inputs[params:])
    return Steps(tuple(kept[::-1]), flat.params, rest, flat.constants, outputs, flat.shapes)


def run(steps: Sequence[Step], known: dict[Value, Any]) -> dict[Value, Any]:
    """Run steps on known values, and return all that is known after."""
    for step in steps:
        operands = [ref.value if isinstance(ref, Literal) else known[ref] for ref in step.reads]
        known.update(zip(step.writes, step.call(*operands), strict=True))
    return known


class _Flattening:
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.params: dict[Value, Place] = {}
        self.shapes: dict[Value, jax.ShapeDtypeStruct] = {}
        self.constants: dict[Value, Any] = {}
        self.makers: dict[Value, tuple[Any, tuple[Ref, ...]]] = {}  # of elementwise results

    def new(self, like: Any) -> Value:
        shape, dtype = getattr(like, "shape", ()), getattr(like, "dtype", np.dtype(np.bool_))
        self.shapes[len(self.shapes)] = jax.ShapeDtypeStruct(shape, dtype)
        return len(self.shapes) - 1

    def body(self, body: _jax.Body, operands: Sequence[Ref]) -> list[Ref]:
        known: dict[Any, Ref] = dict(zip(body.jaxpr.invars, operands, strict=True))
        for variable, constant in zip(body.jaxpr.constvars, body.consts, strict=True):
            known[variable] = value = self.new(variable.aval)
            self.constants[value] = constant
        for eqn, live in zip(body.jaxpr.eqns, _jax.live_equations(body.jaxpr), strict=True):
            if not live:
                continue
            reads = tuple(_ref(v, known) for v in eqn.invars)
            if _jax.is_plain_call(eqn):
                writes = self.body(_called(eqn), reads)
            elif self.stacks_layers(eqn, reads):
                writes = self.unrolled(_jax.scan_of(eqn), reads)
            else:
                writes = self.step(eqn, reads)
            known.update(zip(eqn.outvars, writes, strict=True))
        return [_ref(v, known) for v in body.jaxpr.outvars]

    def step(self, eqn: Any, reads: tuple[Ref, ...]) -> list[Ref]:
        return list(self.bound(eqn, reads, [v.aval for v in eqn.outvars]))

    def bound(self, eqn: Any, reads: tuple[Ref, ...], like: Sequence[Any]) -> tuple[Value, ...]:
        writes = tuple(self.new(one) for one in like)
        shapes = tuple(str(self.shapes[r]) for r in (*reads, *writes) if not isinstance(r, Literal))
        literals = tuple(_written(r.value) if isinstance(r, Literal) else None for r in reads)
        key = (eqn.primitive.name, _settings(eqn), shapes, literals)
        product = any(e.primitive.name in PRODUCTS for e in _inside(eqn))
        self.steps.append(Step(key, _Bound(eqn), reads, writes, product))
        if eqn.primitive.name in _BY_LAYER:
            self.makers[writes[0]] = eqn, reads
        return writes

    def computed(self, ref: Ref) -> Ref:
        """Return a result: of a parameter that is returned as it is, a copy."""
        if isinstance(ref, Literal) or ref not in self.params:
            return ref
        return self.made(("same", str(self.shapes[ref])), lambda x: x, (ref,), self.shapes[ref])

    def made(self, key: Any, call: Callable[..., Any], reads: tuple[Ref, ...], like: Any) -> Value:
        value = self.new(like)
        self.steps.append(Step(key, lambda *xs: [call(*xs)], reads, (value,)))
        return value

    def stacks_layers(self, eqn: Any, reads: Sequence[Ref]) -> bool:
        """Tell whether a scan runs over layers that parameters stack, rather than over time."""
        if eqn.primitive.name != "scan":
            return False
        scan = _jax.scan_of(eqn)
        sliced = reads[scan.consts + scan.carries :]
        return any(map(self.layered, sliced)) and any(
            e.primitive.name in PRODUCTS for e in _inside(eqn)
        )

    def layered(self, ref: Ref) -> bool:
        """Tell whether a value is a parameter, or computed from one entry by entry."""
        if isinstance(ref, Literal):
            return False
        if ref in self.params:
            return self.params[ref].layer is None
        _, reads = self.makers.get(ref, (None, ()))
        shapes = {self.shapes[r].shape for r in reads if not isinstance(r, Literal)}
        return shapes <= {(), self.shapes[ref].shape} and any(map(self.layered, reads))

    def unrolled(self, scan: _jax.Scan, reads: Sequence[Ref]) -> list[Ref]:
        consts, rest = reads[: scan.consts], reads[scan.consts :]
        carry, sliced = list(rest[: scan.carries]), rest[scan.carries :]
        rows: list[list[Ref]] = [[] for _ in range(scan.length)]
        for i in reversed(range(scan.length)) if scan.reverse else range(scan.length):
            layers = [self.sliced(ref, i) for ref in sliced]
            found = self.body(scan.body, [*consts, *carry, *layers])
            carry, rows[i] = found[: scan.carries], found[scan.carries :]
        stacked = [self.stacked(column) for column in zip(*rows, strict=True)]
        return [*carry, *stacked]

    def sliced(self, ref: Ref, i: int) -> Ref:
        if isinstance(ref, Literal):
            return Literal(ref.value[i])
        shape = self.shapes[ref]
        like = jax.ShapeDtypeStruct(shape.shape[1:], shape.dtype)
        place = self.params.get(ref)
        if place is not None and place.layer is None:
            value = self.new(like)
            self.params[value] = place._replace(layer=i)
            return value
        if ref in self.makers and self.layered(ref):
            eqn, reads = self.makers[ref]
            layers = tuple(self.sliced(r, i) if self.rank(r) else r for r in reads)
            return self.bound(eqn, layers, [like])[0]
        take = functools.partial(lax.index_in_dim, index=i, axis=0, keepdims=False)
        return self.made(("slice", i, str(shape)), take, (ref,), like)

    def rank(self, ref: Ref) -> int:
        return 0 if isinstance(ref, Literal) else len(self.shapes[ref].shape)

    def stacked(self, refs: Sequence[Ref]) -> Value:
        some = next((self.shapes[r] for r in refs if not isinstance(r, Literal)), None)
        one = jnp.asarray(refs[0].value) if isinstance(refs[0], Literal) else some
        assert one is not None
        like = jax.ShapeDtypeStruct((len(refs), *one.shape), one.dtype)
        return self.made(
            ("stack", len(refs), str(like)), lambda *xs: jnp.stack(xs), tuple(refs), like
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Bound:
    eqn: Any

    def __call__(self, *operands: Any) -> Sequence[Any]:
        return _jax.bind(self.eqn, operands)


def _ref(variable: Any, known: Mapping[Any, Ref]) -> Ref:
    return Literal(variable.val) if _jax.is_literal(variable) else known[variable]


def _called(eqn: Any) -> _jax.Body:
    inner = _jax.called(eqn)
    assert inner is not None
    return inner


def _settings(eqn: Any) -> tuple[Any, ...]:
    """Write an equation's settings.

    Functions beside a jaxpr are left out: it says what they do, and they differ from trace to
    trace. Others, as of a callback, are told apart, and so are the constants of a jaxpr.
    """
    bodies = [body for inner in _inside(eqn) for body in _jax.bodies_of(inner)]
    told: list[Any] = [id(constant) for body in bodies for constant in body.consts]
    for name, value in sorted(eqn.params.items()):
        if not callable(value) or _jax.is_jaxpr(value):
            told.append((name, str(value)))
        elif not bodies:
            told.append((name, id(value)))
    return tuple(told)


def _written(value: Any) -> Any:
    """Write a constant out; long arrays are cut short by their own text."""
    return repr(value) if not np.ndim(value) else np.asarray(value).tobytes()


def _inside(eqn: Any) -> Iterator[Any]:
    yield eqn
    for body in _jax.bodies_of(eqn):
        for inner in body.jaxpr.eqns:
            yield from _inside(inner)
