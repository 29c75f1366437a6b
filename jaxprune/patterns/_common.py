"""What the patterns share: counts, error texts, and reshapes that keep a sharding."""

import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def short_repr(pattern: Any) -> str:
    """Return ``Name(field=value, ...)`` without the fields that have their default."""
    fields = ((field, getattr(pattern, field.name)) for field in dataclasses.fields(pattern))
    shown = [f"{field.name}={value!r}" for field, value in fields if value != field.default]
    return f"{type(pattern).__name__}({', '.join(shown)})"


def as_int(owner: str, name: str, value: Any, meaning: str) -> int:
    """Return an argument of a constructor as an int, or raise an error that names it."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(
            f"{owner}: {name} must be an integer, got {value!r} of type {type(value).__name__}. "
            f"It is {meaning}."
        )
    return number


def misfit(pattern: Any, path: str, shape: tuple[int, ...], why: str, remedy: str) -> ValueError:
    """Return the error for a parameter that a pattern does not fit."""
    return ValueError(f"{pattern!r} does not fit {path!r} of shape {shape}: {why}. {remedy}.")


def kept_units(count: int, density: Any) -> Any:
    """Return ``round(count * density)``, half to even, and at least 1 if density is above 0."""
    if isinstance(density, jax.Array):
        kept = jnp.round(np.float32(count) * density).astype(jnp.int32)
        return jnp.where(density > 0.0, jnp.maximum(kept, 1), 0)
    return max(round(count * density), 1) if density > 0.0 else 0


def whole_groups(x: jax.Array, axis: int, group: int) -> jax.Array:
    """Gather ``x`` along an axis whose shards cut a group of ``group`` neighbours.

    Only explicit mesh axes show in an array's type; with automatic ones the compiler does the same.
    """
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis]
    if names is None:
        return x
    shards = 1
    for name in names if isinstance(names, tuple) else (names,):
        shards *= sharding.mesh.shape[name]
    if x.shape[axis] // shards % group == 0:
        return x
    spec = [None if a == axis else part for a, part in enumerate(sharding.spec)]
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def sharded_like(mask: jax.Array, scores: jax.Array) -> jax.Array:
    """Return ``mask`` with the sharding of ``scores``, of explicit and automatic axes alike.

    The condition on the scores is always true; no compiler folds it away.
    """
    return mask & ((scores == scores) | (scores != scores))


def split(x: jax.Array, axis: int, group: int) -> jax.Array:
    """Return ``x`` with ``axis`` cut into ``(groups, group)``; zeros fill a short tail."""
    x = whole_groups(x, axis, group)
    short = -x.shape[axis] % group
    if short:
        x = jnp.pad(x, [(0, short if a == axis else 0) for a in range(x.ndim)])
    return x.reshape(*x.shape[:axis], x.shape[axis] // group, group, *x.shape[axis + 1 :])


def join(x: jax.Array, axis: int, length: int) -> jax.Array:
    """Undo :func:`split`: merge ``axis`` with the next and drop the tail beyond ``length``."""
    groups, group = x.shape[axis : axis + 2]
    x = x.reshape(*x.shape[:axis], groups * group, *x.shape[axis + 2 :])
    return x if x.shape[axis] == length else jax.lax.slice_in_dim(x, 0, length, axis=axis)
