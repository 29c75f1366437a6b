"""Where has each weight gone? What is known of values, and what was seen on the way."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.graph.factors import whole
from jaxprune.graph.uses import Skipped, WeightUse
from jaxprune.graph.values import LostAt, Value, element, join
from jaxprune.graph.walk import Context

Rule = Callable[["Provenance", Any, list[Value], Context], list[Value]]


class Provenance:
    """Reads values as parts of parameters, as long as no data has met them."""

    def __init__(self, rule_of: Callable[[str], Rule]) -> None:
        self._rule_of = rule_of
        self.uses: list[WeightUse] = []
        self.skipped: list[Skipped] = []
        self.lost: dict[str, LostAt] = {}
        self.trained_sites: dict[tuple[int | str, ...], int] = {}
        self._numbers: dict[Hashable, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._silent = 0

    def parameter(self, path: str, shape: tuple[int, ...]) -> Value:
        """Return the value of a parameter."""
        piece = whole(path, shape)
        self._shapes[path] = shape
        return Value(shape, self._number(("parameter", path)), trained=True, pieces=(piece,))

    def input(self, position: int, shape: tuple[int, ...]) -> Value:
        """Return the value of an input."""
        number = self._number(("input", position))
        return Value(shape, number, data=True, marks=(whole(str(position), shape),))

    def constant(self, value: Any) -> Value:
        """Return what is known of a constant."""
        shape = tuple(np.shape(value))
        dtype = jnp.result_type(value)
        real = jnp.issubdtype(dtype, np.floating) or jnp.issubdtype(dtype, np.integer)
        known = float(value) if shape == () and (real or dtype == np.bool_) else None
        key = ("scalar", known, str(dtype)) if known is not None else ("array", id(value))
        return Value(shape, self._number(key), known=known, constant=shape != ())

    def equation(self, eqn: Any, inputs: list[Value], context: Context) -> list[Value]:
        """Return what is known of an equation's outputs."""
        return self._rule_of(eqn.primitive.name)(self, eqn, inputs, context)

    def element(self, value: Value, context: Context, position: int) -> Value:
        """Return what is known of a slice that a scan takes along the first axis."""
        return element(value, self._number(("element", context.site, position)), context.site)

    def stacked(self, value: Value, context: Context, position: int) -> Value:
        """Return what is known of the slices that a scan puts out; weights among them are lost."""
        lost = tuple(
            LostAt(p.path, "scan", context.site, "a scan puts it out again") for p in value.pieces
        )
        number = self._number(("stacked", context.site, position))
        return dataclasses.replace(
            value, number=number, pieces=(), marks=(), lost=value.lost + lost, known=None
        )

    def renamed(self, value: Value, context: Context, position: int) -> Value:
        """Return the same knowledge of another value."""
        return dataclasses.replace(value, number=self._number(("carry", context.site, position)))

    def joined(self, a: Value, b: Value, context: Context, position: int) -> Value:
        """Return what is known of a value that is either of two."""
        return join(a, b, self._number(("carry", context.site, position)))

    def quiet(self, run: Callable[[], list[Value]]) -> list[Value]:
        """Run without noting what is seen."""
        self._silent += 1
        try:
            return run()
        finally:
            self._silent -= 1

    def outputs(self, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        """Return the outputs of an equation with what they inherit: data, training, constants."""
        data = any(v.data for v in inputs)
        trained = any(v.trained for v in inputs)
        constant = not data and any(v.constant for v in inputs)
        numbers = self._result_numbers(eqn, inputs)
        return [
            Value(tuple(v.aval.shape), n, data, trained, constant=constant)
            for v, n in zip(eqn.outvars, numbers, strict=True)
        ]

    def note(self, use: WeightUse) -> None:
        """Note a use."""
        if not self._silent:
            shape = self._shapes[use.path]  # an axis of size 1 has no index to speak of
            indexed = tuple(f for f in use.indexed if f.axis is not None and shape[f.axis] > 1)
            self.uses.append(dataclasses.replace(use, indexed=indexed))

    def note_lost(self, value: Value) -> None:
        """Note the parameters that met data, but whose weights were out of sight by then."""
        for entry in value.lost:
            self.lost.setdefault(entry.path, entry)

    def skip(self, path: str, eqn: Any, context: Context, reason: str) -> None:
        """Note a parameter that cannot be followed."""
        entry = Skipped(path, eqn.primitive.name, context.site, reason)
        if not self._silent and entry not in self.skipped:
            self.skipped.append(entry)

    def note_gradients(self, context: Context, count: int) -> None:
        """Note how many operands of a product training needs the gradient of."""
        if not self._silent:
            self.trained_sites[context.site] = count

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def _result_numbers(self, eqn: Any, inputs: Sequence[Value]) -> list[int]:
        """Return a number for each result: what is computed twice has one number."""
        params = tuple(eqn.params.items())
        try:
            hash(params)
            key: Hashable = (eqn.primitive.name, params, tuple(v.number for v in inputs))
            if eqn.effects or (not inputs and eqn.primitive.name != "iota"):
                key = object()
        except TypeError:
            key = object()
        return [self._number((key, i)) for i in range(len(eqn.outvars))]
