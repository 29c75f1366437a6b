"""Which stored blocks each grid step of the TPU's block-sparse product multiplies."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Steps(NamedTuple):
    """The steps of a product, in order.

    Attributes:
      number: () int32, how many steps there are: at most ``most``.
      line: (most,) int32, the line of each step: a block column, or a block row if transposed.
      live: (most,) int32, how many blocks it multiplies: 0 for a line without any.
      inner: (most * blocks,) int32, per block, its place along the contracted axis.
      slot: (most * blocks,) int32, per block, where it is stored.
    """

    number: jax.Array
    line: jax.Array
    live: jax.Array
    inner: jax.Array
    slot: jax.Array


def plan(
    starts: jax.Array,
    stops: jax.Array,
    inner: jax.Array,
    order: jax.Array | None,
    *,
    blocks: int,
) -> Steps:
    """Cut each line into steps of up to ``blocks`` blocks; a line without any has one step.

    Args:
      starts: (lines,) int32, the first place of each line.
      stops: (lines,) int32, the place after its last one.
      inner: (slots,) int32, the place of each slot's block along the contracted axis.
      order: (slots,) int32, the slot at each place; None if places are slots.
      blocks: the most blocks of a step.
    """
    slots, lines = inner.shape[0], starts.shape[0]
    most = slots // blocks + lines
    each = jnp.maximum(-(-(stops - starts) // blocks), 1)
    ends = jnp.cumsum(each, dtype=jnp.int32)
    step = lax.iota(jnp.int32, most)
    line = jnp.sum(ends[None, :] <= step[:, None], axis=1, dtype=jnp.int32)
    line = jnp.minimum(line, lines - 1)
    first = starts[line] + (step - (ends - each)[line]) * blocks
    live = jnp.clip(stops[line] - first, 0, blocks)
    offset = lax.iota(jnp.int32, blocks)
    place = jnp.minimum(first[:, None] + offset[None, :], slots - 1).reshape(-1)
    slot = place if order is None else order[place]
    return Steps(ends[-1], line, live, inner[slot], slot)
