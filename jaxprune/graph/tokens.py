"""Which rows of an activation are which tokens: a mask is followed through the model."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.graph.factors import Dim, Piece, merged
from jaxprune.graph.plan import Probe


def rows_counted(
    probe: Probe, mask: jax.Array, inputs: Sequence[Any], dims: Sequence[int]
) -> jax.Array:
    """Return which rows of an input count: [tokens], as the rows flatten ``dims``.

    Args:
      probe: the input.
      mask: boolean, the first dimensions of one of the function's inputs; True = counted.
      inputs: the function's inputs.
      dims: dimensions of the activation that the rows flatten.

    Raises:
      ValueError: the mask's dimensions cannot be found in the activation.
    """
    found = [
        way
        for mark in probe.use.marks
        if mark.path in _sources(mask, inputs)
        if (way := _way([merged(mark.dims[d]) for d in dims], mark, dims, mask.ndim)) is not None
    ]
    if len(set(found)) != 1:
        use = probe.use
        raise ValueError(
            f"mask of shape {mask.shape} cannot be followed to the input of {use.path!r} "
            f"({use.primitive} {use.site}): its batch and time are "
            f"{'not unique' if found else 'lost'} there, by routing or inside a loop. Capture "
            "without mask, or leave this weight out with where=."
        )
    sizes, axes = found[0]
    order = [axis for axis in axes if axis is not None]
    moved = jnp.transpose(mask, order)
    ones = [size if axis is not None else 1 for size, axis in zip(sizes, axes, strict=True)]
    return jnp.broadcast_to(moved.reshape(ones), sizes).reshape(math.prod(sizes))


def _sources(mask: jax.Array, inputs: Sequence[Any]) -> set[str]:
    """Return the inputs whose first dimensions are the mask's."""
    shapes = [tuple(x.shape) for x in inputs]
    found = {str(i) for i, shape in enumerate(shapes) if shape[: mask.ndim] == mask.shape}
    if not found:
        raise ValueError(
            f"mask has shape {mask.shape}, which is no beginning of an input's shape: {shapes}. "
            "Give one boolean for each token, such as tokens != padding."
        )
    return found


Way = tuple[tuple[int, ...], tuple[int | None, ...]]
"""Sizes of the rows' digits, and which axis of the mask each of them is."""


def _way(digits: Sequence[Dim], mark: Piece, dims: Sequence[int], rank: int) -> Way | None:
    factors = [f for dim in digits for f in dim]
    axes = tuple(
        f.axis if f.axis is not None and f.axis < rank and abs(f.stride) == 1 else None
        for f in factors
    )
    partial = any(
        f.stride < 0 or f.start != 0 for f, a in zip(factors, axes, strict=True) if a is not None
    )
    if sorted(a for a in axes if a is not None) != list(range(rank)) or partial:
        return None
    if any(mark.offsets[d] for d in dims):
        return None
    return tuple(f.size for f in factors), axes
