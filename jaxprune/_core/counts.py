"""Counts beyond 2**31 in two 32-bit words: exact without 64-bit integers, which jax leaves off."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_WORD = 1 << 16
MOST = (1 << 31) - 1  # that 32 bits hold


class Count(NamedTuple):
    """An integer below 2**47, ``high * 2**16 + low``. The words have one shape."""

    high: Any  # int32, negative if the count is
    low: Any  # int32, in [0, 2**16)


def as_count(value: int | np.ndarray | jax.Array) -> Count:
    """Split an integer or integers of any width; one of Python's stays on the host."""
    if isinstance(value, int | np.integer):
        return Count(np.int32(value >> 16), np.int32(value & (_WORD - 1)))
    value = value.astype(jnp.int32) if value.dtype.itemsize < 4 else value
    return Count((value >> 16).astype(jnp.int32), (value & (_WORD - 1)).astype(jnp.int32))


def carry(high: jax.Array, low: jax.Array) -> Count:
    """Bring ``low``, of either sign, back into its range."""
    return Count(high + (low >> 16), low & (_WORD - 1))


def plus(a: Count, b: Count) -> Count:
    """Return ``a + b``."""
    return carry(a.high + b.high, a.low + b.low)


def minus(a: Count, b: Count) -> Count:
    """Return ``a - b``."""
    return carry(a.high - b.high, a.low - b.low)


def at_least(a: Count, b: Count) -> jax.Array:
    """Return ``a >= b``."""
    return (a.high > b.high) | ((a.high == b.high) & (a.low >= b.low))


def equal(a: Count, b: Count) -> jax.Array:
    """Return ``a == b``."""
    return (a.high == b.high) & (a.low == b.low)


def where(chosen: jax.Array, a: Count, b: Count) -> Count:
    """Return ``a`` where chosen, else ``b``."""
    return Count(jnp.where(chosen, a.high, b.high), jnp.where(chosen, a.low, b.low))


def between(count: Count, most: jax.Array) -> jax.Array:
    """Return the count clipped to [0, most] as int32; ``most`` is int32, not negative."""
    inside = jnp.where(count.high < 0, 0, to_int(count))  # far below 0 a word would wrap round
    return jnp.where(at_least(count, as_count(most)), most, inside)


def to_float(count: Count) -> jax.Array:
    """Return the count rounded to float32."""
    return count.high.astype(jnp.float32) * _WORD + count.low.astype(jnp.float32)


def to_int(count: Count) -> jax.Array:
    """Return the count as int32; the caller knows that it fits."""
    return (count.high << 16) + count.low


def how_many(flags: jax.Array) -> jax.Array:
    """Return how many flags of an array of any size are True, `saturated`."""
    return saturated(jnp.sum(flags, axis=tuple(range(1, flags.ndim)), dtype=jnp.int32))


def saturated(parts: jax.Array) -> jax.Array:
    """Return the sum of int32 counts as int32, exact up to 2**30; 2**31 - 1 if it is far larger."""
    near = jnp.sum(parts.astype(jnp.float32))
    return jnp.where(near < 1.5 * 2.0**30, jnp.sum(parts, dtype=jnp.int32), jnp.int32(MOST))
