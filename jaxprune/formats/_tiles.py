"""A matrix cut into tiles, and the order in which some of them are stored."""

import jax
import jax.numpy as jnp
import numpy as np


def tiles_of(w: jax.Array, height: int, width: int) -> jax.Array:
    """Return ``[..., rows, columns, height, width]``."""
    k, n_out = w.shape[-2:]
    cut = w.reshape(*w.shape[:-2], k // height, height, n_out // width, width)
    return jnp.swapaxes(cut, -2, -3)


def stored(tiles: jax.Array, live: jax.Array, *, slots: int) -> tuple[jax.Array, ...]:
    """Return data, rows, columns, starts, by_row and row_starts of one matrix."""
    high, wide = live.shape
    place = jnp.arange(high * wide, dtype=jnp.int32)
    order = jnp.argsort(jnp.where(live.T.reshape(-1), place, high * wide + place))
    order = jnp.pad(order.astype(jnp.int32), (0, max(slots - high * wide, 0)))[:slots]
    used = jnp.arange(slots, dtype=jnp.int32) < jnp.sum(live, dtype=jnp.int32)
    rows = jnp.where(used, order % np.int32(high), 0)
    columns = jnp.where(used, order // np.int32(high), wide - 1)
    kept = used.reshape(-1, 1, 1)
    data = jnp.where(kept, tiles[rows, columns], jnp.zeros((), tiles.dtype))
    by_row = jnp.argsort(rows * np.int32(wide) + columns).astype(jnp.int32)
    starts = jnp.searchsorted(columns, jnp.arange(wide + 1, dtype=jnp.int32))
    row_starts = jnp.searchsorted(rows[by_row], jnp.arange(high + 1, dtype=jnp.int32))
    int32 = [x.astype(jnp.int32) for x in (rows, columns, starts, by_row, row_starts)]
    return data, *int32
