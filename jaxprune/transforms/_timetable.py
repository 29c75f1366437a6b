"""When masks change: fixed on the host, read inside jit."""

import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


@dataclasses.dataclass(frozen=True)
class Timetable:
    """Updates at ``begin``, every ``every`` steps after, and at ``end`` however ``every`` divides.

    Attributes:
      begin: first update, a step counted from 0.
      every: steps between updates.
      end: last update, or None to go on for ever.
    """

    begin: int
    every: int
    end: int | None

    def fires(self, step: jax.Array) -> jax.Array:
        """Tell whether masks change at a (traced) step."""
        since = step - np.int32(self.begin)
        due = (since >= 0) & (since % np.int32(self.every) == 0)
        if self.end is None:
            return due
        return (due & (step < np.int32(self.end))) | (step == np.int32(self.end))

    def index(self, step: jax.Array) -> jax.Array:
        """Return the number of the update at a (traced) step, from 0."""
        since = jnp.maximum(step - np.int32(self.begin), 0)
        return (since + np.int32(self.every - 1)) // np.int32(self.every)

    def steps(self) -> list[int]:
        """Return the steps at which masks change; one without an end repeats its first."""
        if self.end is None:
            return [self.begin]
        return [*range(self.begin, self.end, self.every), self.end]


def as_period(name: str, value: Any) -> int:
    """Return a number of steps of at least 1, or raise an error that names the argument."""
    number = _as_integer(name, value, "an integer number of steps")
    if number < 1:
        raise ValueError(f"{name} must be 1 step or more, got {number}.")
    return number


def as_step(name: str, value: Any) -> int:
    """Return a step, counted from 0, or raise an error that names the argument."""
    number = _as_integer(name, value, "a step, an integer")
    if number < 0:
        raise ValueError(f"{name} must be a step of 0 or more, got {number}.")
    return number


def _as_integer(name: str, value: Any, kind: str) -> int:
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be {kind}, got {value!r} of type {type(value).__name__}.")
    return number


@jax.custom_batching.custom_vmap
def _any(flag: jax.Array) -> jax.Array:
    return flag


@_any.def_vmap
def _any_batched(axis_size: int, in_batched: list[bool], flag: jax.Array) -> tuple[jax.Array, bool]:
    del axis_size, in_batched
    return jnp.any(flag), False


def gate(flag: jax.Array, changed: Any, kept: Any) -> Any:
    """Return ``changed()`` where flag is True, else ``kept``, and compute it only then.

    Under ``vmap`` (over seeds, say) a ``lax.cond`` becomes a select that always computes; the
    flag is therefore reduced over the batch first, and the select happens inside. Outside jit the
    flag is known, and errors that depend on values can be raised.
    """
    if not isinstance(flag, Tracer):
        return changed() if bool(flag) else kept

    def either(new: jax.Array, old: jax.Array) -> jax.Array:
        return old if new is old else jnp.where(flag, new, old)

    def select() -> Any:
        return jax.tree.map(either, changed(), kept)

    return jax.lax.cond(_any(flag), select, lambda: kept)
