"""Inside ``shard_map``: the mesh axes over which an array is split."""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

_SPLIT_OVER: contextvars.ContextVar[tuple[str, ...] | None] = contextvars.ContextVar(
    "split_over", default=None
)


@contextlib.contextmanager
def split_over(axis_names: Sequence[str] | None) -> Iterator[None]:
    """Let selections made inside take ``axis_names`` as theirs; None leaves them to the array."""
    token = _SPLIT_OVER.set(None if axis_names is None else _bound(axis_names))
    try:
        yield
    finally:
        _SPLIT_OVER.reset(token)


def gathered_alone(array: jax.Array) -> jax.Array:
    """Return an array as it is, so that whoever gathers it does not gather what it is made of.

    A sharding that is asked for of a result applies to the operation that makes it, and so to all
    of its operands: a weight and its mask. This operation has no other operand but a scalar.
    """
    if not isinstance(array, Tracer):
        return array
    always = lax.optimization_barrier(np.bool_(True))
    return jnp.where(always, array, jnp.zeros_like(array))


def shards_of(array: jax.Array) -> int:
    """Return over how many shards an array is split inside ``shard_map``; 1 outside."""
    return shards(mesh_axes(array, None))


def known_axes(array: jax.Array) -> tuple[str, ...]:
    """Return the mesh axes over which an array is split, as far as anything says so."""
    given = _SPLIT_OVER.get()
    return _varying(array) if given is None else given


def shards(names: Sequence[str]) -> int:
    """Return the number of shards along the mesh axes."""
    return math.prod(lax.axis_size(name) for name in names)


def mesh_axes(array: jax.Array, axis_names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the mesh axes over which an array is split: those given, else those of its type."""
    if axis_names is not None:
        return _bound(axis_names)
    if (given := _SPLIT_OVER.get()) is not None:
        return given
    manual, varying = _manual(), _varying(array)
    if manual and not varying:
        raise ValueError(
            f"cannot read over which of the mesh axes {manual} an array of shape "
            f"{array.shape} is split (shard_map with check_vma=False, or a replicated array). "
            "Pass axis_names= with those axes, or axis_names=() if every shard holds the whole."
        )
    return varying


def mesh_axes_along(
    axes: tuple[int, ...], array: jax.Array, axis_names: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the mesh axes over which some axes of an array are split: only the caller knows."""
    if axis_names is not None:
        return _bound(axis_names)
    if manual := _manual():
        raise ValueError(
            f"cannot read which of the mesh axes {manual} split the axes {axes} along which scores "
            f"of shape {array.shape} compete. Pass axis_names= with those mesh axes, or "
            "axis_names=() if no shard lacks a competitor."
        )
    return ()


def _varying(array: jax.Array) -> tuple[str, ...]:
    """Return the mesh axes over which an array's type says that it varies."""
    manual = _manual()
    varying = jax.typeof(array).manual_axis_type.varying if manual else ()
    return tuple(name for name in manual if name in varying)


def _manual() -> tuple[str, ...]:
    """Return the mesh axes of the ``shard_map`` that is being traced."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def _bound(axis_names: Sequence[str]) -> tuple[str, ...]:
    """Return the names as a tuple; raise if one is no mesh axis here."""
    names = (axis_names,) if isinstance(axis_names, str) else tuple(axis_names)
    for name in names:
        try:
            lax.axis_size(name)
        except NameError:
            raise ValueError(
                f"axis_names={names} has {name!r}, which is no axis of a shard_map around this "
                f"call; its axes are {_manual()}. Outside shard_map leave axis_names out: a "
                "sharded array is selected from as a whole."
            ) from None
    return names
