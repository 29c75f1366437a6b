"""2:4 weights times many rows on the sparse tensor cores of a Hopper GPU.

``y = x @ W`` by `wgmma.mma_async.sp`, whose sparse operand is its first: weights are stored as
[N, K], and a tile of the transposed product is written back transposed. The kernel itself is in
`nm_gemm_gpu_kernel`, the layout of the weights in `nm_gemm_gpu_layout`. Rows need not fill tiles:
the last tile is moved back over the one before. Where they are not a multiple of 8, x is padded and
y is cut, which XLA may fuse with what is before and after. Products with too few tiles for all
multiprocessors are split along k.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.kernels import _hopper
from jaxprune.kernels._hopper import ceil_div
from jaxprune.kernels.nm_gemm_gpu_layout import BLOCK, DEPTH, Config, Packed, pack, unpack

__all__ = ["Config", "Packed", "configs", "default", "matmul", "pack", "supports", "unpack"]

_STAGES = {256: 4, 128: 6, 64: 8, 32: 8}  # that fit into shared memory, for the rows of a tile
_LEAST = min(_STAGES)
_PARTS = 16  # of k, at most
_FILL = 8  # steps' worth of time until data arrives, and to start adding parts
_ADDED = 125_000  # sums of parts that are written and read in the time of a step


def supports(
    rows: int, k: int, n_out: int, dtype: Any, n: int, m: int, *, device_kind: str
) -> str | None:
    """Return why the kernel cannot serve a product, with the remedy, or None."""
    refused = _hopper.refusal(dtype, device_kind)
    if refused is not None:
        return refused
    if (n, m) != (2, 4):
        return (
            f"takes 2:4, not {n}:{m}: the sparse tensor cores multiply 2 of every 4 weights. Use "
            "implementation='xla'."
        )
    if rows < 1 or n_out < 1:
        return f"needs at least one row and one output, not {rows} and {n_out}."
    if k % 8:
        return f"needs k to be a multiple of 8, not {k}. Pad x and the weights with zeros."
    return None


def matmul(
    x: jax.Array,
    packed: Packed,
    *,
    n: int,
    m: int,
    n_out: int,
    config: Config | None = None,
    emulate: Any = None,
) -> jax.Array:
    """Multiply rows by packed 2:4 weights, with sums in float32.

    Args:
      x: [rows, K] of the weights' type.
      packed: the weights, from `pack`.
      n: 2.
      m: 4.
      n_out: outputs.
      config: how the work is split; `default` where it is None.
      emulate: parameters of Pallas's interpreter, in which the product is decoded by jax.

    Returns:
      [rows, n_out] of the type of x.
    """
    assert (n, m) == (2, 4), (n, m)
    if x.dtype != packed.values.dtype:
        raise TypeError(
            f"nm_gemm_gpu: x must have the type of the weights, {packed.values.dtype.name}, got "
            f"{x.dtype.name}. Cast x, or pack the weights anew."
        )
    from jaxprune.kernels import nm_gemm_gpu_kernel  # Pallas for GPUs is not on every machine

    rows, k = x.shape
    config = config or default(rows, k, n_out, n, m)
    more = max(-rows % 8, config.rows - rows)  # tiles of x are made of 8 rows
    x = jnp.pad(x, ((0, more), (0, 2 * packed.values.shape[1] - k)))
    y = nm_gemm_gpu_kernel.run(x, packed, config, emulate)
    return y[:rows, :n_out]  # nothing to do where all are whole


def default(rows: int, k: int, n_out: int, n: int = 2, m: int = 4) -> Config:
    """Return a good split for a product that no table knows."""
    del n, m
    fewest = {size: ceil_div(rows, size) * (size + 32) for size in _STAGES}
    tile = min(fewest, key=lambda size: fewest[size])
    cluster = 2 if n_out > BLOCK else 1
    return Config(tile, _STAGES[tile], cluster, splits=_splits(rows, k, n_out, tile, cluster)[0])


def _splits(rows: int, k: int, n_out: int, tile: int, cluster: int) -> list[int]:
    """Return the numbers of parts of k that keep most multiprocessors at work, the best first."""
    steps = ceil_div(k, DEPTH)
    tiles = ceil_div(n_out, BLOCK * cluster) * ceil_div(rows, tile)

    def cost(parts: int) -> int:
        waves = ceil_div(tiles * parts, _hopper.MULTIPROCESSORS // cluster)
        added = _FILL + parts * rows * n_out // _ADDED if parts > 1 else 0
        return waves * (steps // parts + _FILL) + added

    whole = [parts for parts in range(1, _PARTS + 1) if steps % parts == 0]
    return sorted(whole, key=cost)


def configs(rows: int, k: int, n_out: int, n: int = 2, m: int = 4) -> list[Config]:
    """Return the splits that are worth timing, the default first; none for very few rows."""
    if rows < _LEAST // 2:
        return []
    first = default(rows, k, n_out, n, m)
    found = [
        Config(tile, stages, cluster, width, splits)
        for tile, stages in _STAGES.items()
        if tile <= max(rows, _LEAST)
        for cluster in (2, 1)
        for width in ((8, 4, 16) if rows > tile else (8,))
        for splits in _splits(rows, k, n_out, tile, cluster)[:2]
    ]
    return list(dict.fromkeys([first, *found]))
