"""Where the lists of stored blocks end, if only the first ``count`` slots hold blocks."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def of_columns(starts: jax.Array, count: Any) -> tuple[jax.Array, jax.Array]:
    """Return the first slot of every block column, and the slot after its last.

    Args:
      starts: (columns + 1,) int32, where each column begins among the slots.
      count: slots that hold blocks, scalar; None for all.
    """
    if count is None:
        return starts[:-1], starts[1:]
    stops = jnp.minimum(starts[1:], jnp.asarray(count, jnp.int32))
    return jnp.minimum(starts[:-1], stops), stops


def of_rows(row_starts: jax.Array, slots: int, count: Any) -> tuple[jax.Array, jax.Array]:
    """Return the same for block rows, in the order by row.

    Slots without blocks stand last in row 0.

    Args:
      row_starts: (rows + 1,) int32, where each row begins in the order by row.
      slots: how many slots there are.
      count: slots that hold blocks, scalar; None for all.
    """
    starts, stops = row_starts[:-1], row_starts[1:]
    if count is None:
        return starts, stops
    unused = slots - jnp.asarray(count, jnp.int32)
    first = lax.iota(jnp.int32, stops.size) == 0
    return starts, stops - jnp.where(first, unused, 0)
