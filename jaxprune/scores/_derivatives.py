"""Derivatives of a user's function with respect to the prunable weights, summed over batches."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune._core import counts, paths
from jaxprune._core.packing import is_packed, unpack
from jaxprune._core.prunable import Where, select
from jaxprune.types import Tree

Leaves = dict[str, jax.Array]


def wide(leaf: Any) -> Any:
    """Return an array in float32 at least: sums over batches do not fit 16 bits."""
    return leaf.astype(jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32)


def weights_and_masks(params: Tree, masks: Tree, where: Where) -> tuple[Leaves, Leaves]:
    """Return the prunable weights, wide, and their masks where there are any."""
    weights = {path: wide(jnp.asarray(leaf)) for path, leaf in select(params, where).items()}
    kept = paths.flatten(jax.tree.map(unpack, masks, is_leaf=is_packed))
    kept = {path: mask for path, mask in kept.items() if path in weights}
    for path, mask in kept.items():
        if mask.shape != weights[path].shape or mask.dtype != jnp.bool_:
            raise ValueError(
                f"masks has {mask.dtype} of shape {mask.shape} at {path!r}, whose weight has shape "
                f"{weights[path].shape}. Pass boolean masks of these parameters, True = kept."
            )
    return weights, kept


def masked(leaves: Leaves, masks: Leaves) -> Leaves:
    """Return the leaves with zeros where a mask says so."""
    return {
        path: jnp.where(masks[path], leaf, jnp.zeros_like(leaf)) if path in masks else leaf
        for path, leaf in leaves.items()
    }


def restrict(
    name: str, fn: Callable[..., Any], params: Tree, point: Mapping[str, Any], args: tuple[Any, ...]
) -> Any:
    """Return the scalar ``fn(params, *args)`` at the weights of ``point``, in their own dtypes."""
    own = paths.flatten(params)
    narrow = {path: leaf.astype(own[path].dtype) for path, leaf in point.items()}
    value = fn(paths.refill(params, narrow, lambda path, leaf: leaf), *args)
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape != () or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        found = type(value).__name__ if shape is None else f"{dtype} of shape {shape}"
        raise ValueError(
            f"scores.{name} needs a loss_fn that returns one floating-point number, got {found}. "
            "Average over the batch, and return no auxiliary output."
        )
    return wide(value)


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradient(
    name: str, fn: Callable[..., Any], point: Leaves, params: Tree, args: tuple[Any, ...]
) -> Leaves:
    """Return the gradient by path; the program is kept for the next call with the same ``fn``."""
    return jax.grad(lambda at: restrict(name, fn, params, at, args))(point)


@functools.partial(jax.jit, static_argnums=(0, 1))
def curvature(
    name: str,
    fn: Callable[..., Any],
    point: Leaves,
    direction: Leaves,
    params: Tree,
    args: tuple[Any, ...],
) -> Leaves:
    """Return the Hessian times a direction, by path: forward over reverse."""
    slope = jax.grad(lambda at: restrict(name, fn, params, at, args))
    return jax.jvp(slope, (point,), (direction,))[1]


def summed(name: str, over: Callable[[Any], Leaves], batches: Iterable[Any]) -> Leaves:
    """Return the sum of ``over(batch)`` over the batches."""
    total = None
    for batch in batches:
        found = over(batch)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    if total is None:
        raise ValueError(
            f"scores.{name} needs at least one batch, got none. batches is an iterable, such as "
            "[batch]; an iterator that has been used up is empty."
        )
    return total


def checked_batches(name: str, batches: Any) -> Iterable[Any]:
    """Refuse what is a batch itself: its rows or keys would be taken for batches."""
    if (
        isinstance(batches, Mapping)
        or hasattr(batches, "shape")
        or not hasattr(batches, "__iter__")
    ):
        raise TypeError(
            f"scores.{name}: batches must be an iterable of batches, got one "
            f"{type(batches).__name__}. Pass [batch] for a single one."
        )
    return batches


@jax.jit
def _faults(scores: Leaves) -> tuple[dict[str, jax.Array], jax.Array]:
    bad = {p: counts.how_many(~jnp.isfinite(leaf)) for p, leaf in scores.items()}
    return bad, jnp.stack([jnp.any(leaf != 0) for leaf in scores.values()]).any()


def refuse_useless(name: str, what: str, leaves: Leaves, remedy: str) -> None:
    """Raise on leaves that are not finite or all zero; inside ``jit`` nothing can be known."""
    if not leaves or any(isinstance(leaf, Tracer) for leaf in leaves.values()):
        return
    bad, any_left = jax.device_get(_faults(leaves))
    for path, leaf in leaves.items():
        if bad[path]:
            raise ValueError(
                f"scores.{name}: {int(bad[path])} of {leaf.size} {what} of {path!r} are not "
                f"finite. {remedy}"
            )
    if not np.asarray(any_left):
        raise ValueError(
            f"scores.{name}: the {what} of all {len(leaves)} prunable parameters are 0 "
            f"({paths.listed(leaves)}). The function does not depend on them."
        )


def filled(params: Tree, scores: Leaves) -> Tree:
    """Return the scores in the container of ``params``; nothing where not prunable."""
    return paths.refill(params, scores)
