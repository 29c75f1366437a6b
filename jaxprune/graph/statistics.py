"""Statistics of a weight's input, gathered over batches of tokens."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_Raw = Any


@dataclasses.dataclass(frozen=True)
class Statistic:
    """What is gathered of the rows that a weight is multiplied with.

    Attributes:
      take: ``(rows, counted) -> raw``. Rows have the shape ``[*batch, tokens, features]``, in the
        model's dtype; ``counted`` is boolean, ``[*batch, tokens]``, and rows that do not count are
        zero. Zeros must stand for no tokens at all.
      merge: ``(raw, raw) -> raw`` of the tokens of both.
      finish: ``raw -> result``.
      name: for messages.
    """

    take: Callable[[jax.Array, jax.Array], _Raw]
    merge: Callable[[_Raw, _Raw], _Raw]
    finish: Callable[[_Raw], Any]
    name: str = "statistic"

    def __repr__(self) -> str:
        return self.name


def _wide(rows: jax.Array) -> jax.Array:
    return rows.astype(_wide_dtype(rows))


def _wide_dtype(rows: jax.Array) -> jnp.dtype:
    return rows.dtype if rows.dtype.itemsize > 4 else jnp.dtype(jnp.float32)


def _same(raw: _Raw) -> _Raw:
    return raw


def _sum(a: _Raw, b: _Raw) -> _Raw:
    return jax.tree.map(jnp.add, a, b)


class _Mean(NamedTuple):
    total: jax.Array  # [..., features] float32
    tokens: jax.Array  # [...] int32


class _Moments(NamedTuple):
    tokens: jax.Array  # [...] int32
    mean: jax.Array  # [..., features] float32
    squares: jax.Array  # [..., features] float32, of the distances from the mean


def _count(rows: jax.Array, counted: jax.Array) -> jax.Array:
    # Experts of a ragged product share their rows, and count their own.
    shape = jnp.broadcast_shapes(rows.shape[:-1], counted.shape)
    return jnp.sum(jnp.broadcast_to(counted, shape), axis=-1, dtype=jnp.int32)


def _sum_of_squares(rows: jax.Array, counted: jax.Array) -> jax.Array:
    del counted
    return jnp.sum(jnp.square(_wide(rows)), axis=-2)


def _gram(rows: jax.Array, counted: jax.Array) -> jax.Array:
    del counted
    return jnp.einsum(
        "...ti,...tj->...ij",
        rows,
        rows,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=_wide_dtype(rows),
    )


def _largest(rows: jax.Array, counted: jax.Array) -> jax.Array:
    del counted
    return jnp.max(jnp.abs(_wide(rows)), axis=-2)


def _signed(rows: jax.Array, counted: jax.Array) -> _Mean:
    return _Mean(jnp.sum(_wide(rows), axis=-2), _count(rows, counted))


def _absolute(rows: jax.Array, counted: jax.Array) -> _Mean:
    return _Mean(jnp.sum(jnp.abs(_wide(rows)), axis=-2), _count(rows, counted))


def _share(raw: _Mean) -> jax.Array:
    return raw.total / _at_least_one(raw.tokens, raw.total)


def _at_least_one(count: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.maximum(count, 1).astype(like.dtype)[..., None]


def _moments(rows: jax.Array, counted: jax.Array) -> _Moments:
    rows, count = _wide(rows), _count(rows, counted)
    total = jnp.sum(rows, axis=-2)
    mean = total / _at_least_one(count, total)
    distance = jnp.where(counted[..., None], rows - mean[..., None, :], 0)
    return _Moments(count, mean, jnp.sum(jnp.square(distance), axis=-2))


def _together(a: _Moments, b: _Moments) -> _Moments:
    count = a.tokens + b.tokens
    before, new = (x.tokens.astype(a.mean.dtype)[..., None] for x in (a, b))
    share = new / _at_least_one(count, a.mean)
    delta = b.mean - a.mean
    between = jnp.square(delta) * before * share
    return _Moments(count, a.mean + delta * share, a.squares + b.squares + between)


def _variance(raw: _Moments) -> jax.Array:
    return raw.squares / _at_least_one(raw.tokens, raw.squares)


sum_of_squares = Statistic(_sum_of_squares, _sum, _same, "sum_of_squares")
"""``Σ x²`` over tokens for each feature; float32 ``[..., features]``."""

absolute_mean = Statistic(_absolute, _sum, _share, "absolute_mean")
"""``mean |x|`` over tokens for each feature; float32 ``[..., features]``."""

mean = Statistic(_signed, _sum, _share, "mean")
"""``mean x`` over tokens for each feature; float32 ``[..., features]``."""

variance = Statistic(_moments, _together, _variance, "variance")
"""``mean (x − mean x)²`` over tokens for each feature; float32 ``[..., features]``."""

maximum = Statistic(_largest, jnp.maximum, _same, "maximum")
"""``max |x|`` over tokens for each feature; float32 ``[..., features]``."""

gram = Statistic(_gram, _sum, _same, "gram")
"""``Σ x xᵀ`` over tokens, accumulated in float32; ``[..., features, features]``."""

count = Statistic(_count, jnp.add, _same, "count")
"""Tokens; int32 ``[...]``."""
