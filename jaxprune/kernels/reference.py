"""Products in plain XLA: what every kernel is held to, and what runs where none is faster."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.formats import BlockSparse


def dense(x: jax.Array, w: Any, *, precision: Any = None, out: Any = None) -> jax.Array:
    """Multiply with a weight made dense.

    Args:
      x: (rows, k).
      w: a format of one matrix, (k, n_out); values of another dtype are converted to x's.
      precision: as of `jax.lax.dot_general`.
      out: dtype of the sums and of the result; x's if None.
    """
    return lax.dot_general(
        x,
        w.todense().astype(x.dtype),
        (((1,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=x.dtype if out is None else out,
    )


def block_forward(
    x: jax.Array, w: BlockSparse, *, precision: Any = None, out: Any = None
) -> jax.Array:
    """Multiply rows with the stored blocks alone; arguments as of `dense`."""
    parts = _products(_cut(x, w.grid[0])[w.rows], w.data, 1, precision)
    sums = jax.ops.segment_sum(parts, w.columns, w.grid[1], indices_are_sorted=True)
    return _joined(sums).astype(x.dtype if out is None else out)


def block_input_gradient(dy: jax.Array, w: BlockSparse, *, precision: Any = None) -> jax.Array:
    """Return the gradient of x, (rows, k), of that of the result."""
    taken = _cut(dy, w.grid[1])[w.columns[w.by_row]]
    parts = _products(taken, w.data[w.by_row], 2, precision)
    sums = jax.ops.segment_sum(parts, w.rows[w.by_row], w.grid[0], indices_are_sorted=True)
    return _joined(sums).astype(dy.dtype)


def block_weight_gradient(
    x: jax.Array, dy: jax.Array, w: BlockSparse, *, precision: Any = None
) -> jax.Array:
    """Return the gradient of every stored block, (slots, height, width); of padding, anything."""
    pairs = _cut(x, w.grid[0])[w.rows], _cut(dy, w.grid[1])[w.columns]
    return lax.dot_general(
        *pairs,
        (((1,), (1,)), ((0,), (0,))),
        precision=precision,
        preferred_element_type=sums(x.dtype),
    ).astype(w.dtype)


def sums(dtype: Any) -> Any:
    """Return the dtype in which the sums of a result of some dtype are taken."""
    return jnp.dtype(dtype if dtype == jnp.float64 else jnp.float32)


def _cut(x: jax.Array, parts: int) -> jax.Array:
    """Return (parts, rows, size) of (rows, parts * size)."""
    return jnp.swapaxes(x.reshape(x.shape[0], parts, -1), 0, 1)


def _joined(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, 0, 1).reshape(x.shape[1], -1)


def _products(x: jax.Array, data: jax.Array, axis: int, precision: Any) -> jax.Array:
    """Multiply (slots, rows, size) with the blocks, summing over one of their axes."""
    return lax.dot_general(
        x,
        data,
        (((2,), (axis,)), ((0,), (0,))),
        precision=precision,
        preferred_element_type=sums(x.dtype),
    )
