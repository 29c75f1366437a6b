"""A kernel for blocks as `_candidates` describes one, of plain jax: it counts its calls."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

CALLS: list[str] = []


class Config(NamedTuple):
    width: int = 1


def supports(
    rows: int, k: int, n_out: int, dtype: Any, block: tuple[int, int], *, device_kind: str
) -> str | None:
    del rows, k, n_out, dtype, device_kind
    return None if block == (4, 2) else f"needs blocks of 4 × 2, not {block[0]} × {block[1]}."


def forward(
    x: jax.Array,
    data: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    starts: jax.Array,
    *,
    n_out: int,
    count: jax.Array,
    config: Config | None = None,
) -> jax.Array:
    assert count.shape == ()
    CALLS.append(f"forward {config}")
    assert starts.shape == (n_out // 2 + 1,)
    y = jnp.zeros((x.shape[0], n_out), x.dtype)
    for slot in range(len(data)):
        part = jax.lax.dynamic_slice_in_dim(x, rows[slot] * 4, 4, 1) @ data[slot]
        at = (jnp.int32(0), columns[slot] * 2)
        y = jax.lax.dynamic_update_slice(y, jax.lax.dynamic_slice(y, at, part.shape) + part, at)
    return y


def input_gradient(
    dy: jax.Array,
    data: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    by_row: jax.Array,
    row_starts: jax.Array,
    *,
    k: int,
    count: jax.Array,
) -> jax.Array:
    assert count.shape == ()
    CALLS.append("input")
    assert row_starts.shape == (k // 4 + 1,)
    assert by_row.shape == rows.shape
    dx = jnp.zeros((dy.shape[0], k), dy.dtype)
    for slot in range(len(data)):
        part = jax.lax.dynamic_slice_in_dim(dy, columns[slot] * 2, 2, 1) @ data[slot].T
        at = (jnp.int32(0), rows[slot] * 4)
        dx = jax.lax.dynamic_update_slice(dx, jax.lax.dynamic_slice(dx, at, part.shape) + part, at)
    return dx


def weight_gradient(
    x: jax.Array,
    dy: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    *,
    block: tuple[int, int],
    count: jax.Array,
) -> jax.Array:
    assert count.shape == ()
    CALLS.append("weight")
    assert block == (4, 2)
    return jnp.stack(
        [
            jax.lax.dynamic_slice_in_dim(x, rows[s] * 4, 4, 1).T
            @ jax.lax.dynamic_slice_in_dim(dy, columns[s] * 2, 2, 1)
            for s in range(len(rows))
        ]
    )
