"""N:M weights times 1 to 64 rows on a Hopper GPU: bound by reading the weights once.

One launch computes ``y = x @ W``. A block owns some tiles of 16 outputs and, in a cluster of two,
half of k. A warp streams packed weights from device memory into registers, a few chunks ahead, and
multiplies them on the sparse tensor cores by x from shared memory, where the copy engine puts it in
panels of k. The sums of the warps, and of the cluster, are added in a fixed order: results are the
same in every run.

`nm_decode_gpu_layout` says how weights are packed, `nm_decode_gpu_kernel` is the kernel.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.kernels import _hopper
from jaxprune.kernels import nm_decode_gpu_layout as layout
from jaxprune.kernels._hopper import ceil_div
from jaxprune.kernels.nm_decode_gpu_layout import Config, Packed, pack, unpack

__all__ = ["Config", "Packed", "configs", "default", "matmul", "pack", "supports", "unpack"]

ROWS = 64
PATTERNS = ((2, 4), (1, 4), (2, 8), (1, 8), (1, 16), (4, 8), (2, 16), (4, 16))
_WARPS = 16
_STAGES = 16


def supports(
    rows: int, k: int, n_out: int, dtype: Any, n: int, m: int, *, device_kind: str
) -> str | None:
    """Return why the kernel cannot serve a product, with the remedy, or None."""
    refused = _hopper.refusal(dtype, device_kind)
    if refused is not None:
        return refused
    if (n, m) not in PATTERNS:
        known = ", ".join(f"{a}:{b}" for a, b in PATTERNS)
        return f"takes the patterns {known}, not {n}:{m}. Use implementation='xla'."
    if not 1 <= rows <= ROWS:
        return f"takes 1 to {ROWS} rows, not {rows}. Use implementation='xla'."
    if k % m or k % 8:
        return (
            f"needs k to be a multiple of {max(m, 8)}, not {k}. Pad x and the weights with zeros."
        )
    if n_out < 1:
        return "needs at least one output."
    return None


def matmul(
    x: jax.Array, packed: Packed, *, n: int, m: int, n_out: int, config: Config | None = None
) -> jax.Array:
    """Multiply rows by packed weights, with sums in float32.

    Args:
      x: [rows, K], 1 to 64 rows of the weights' type.
      packed: the weights, from `pack`.
      n: weights kept in a group.
      m: weights in a group.
      n_out: outputs.
      config: how the work is split; `default` where it is None.

    Returns:
      [rows, n_out] of the type of x.
    """
    if x.dtype != packed.values.dtype:
        raise TypeError(
            f"nm_decode_gpu: x must have the type of the weights, {packed.values.dtype.name}, got "
            f"{x.dtype.name}. Cast x, or pack the weights anew."
        )
    from jaxprune.kernels import nm_decode_gpu_kernel  # Pallas for GPUs is not on every machine

    p = layout.plan(n, m)
    tiles, chunks = packed.values.shape[:2]
    x = jnp.pad(x, ((0, 0), (0, chunks * p.chunk - x.shape[1])))  # nothing to do for whole chunks
    config = config or default(x.shape[0], x.shape[1], tiles * layout.TILE, n, m)
    return nm_decode_gpu_kernel.run(x, packed, plan=p, config=config, n_out=n_out)


def default(rows: int, k: int, n_out: int, n: int, m: int) -> Config:
    """Return a good split for a product that no table knows."""
    p = layout.plan(n, m)
    chunks = ceil_div(k, p.chunk)
    cluster = 2 if rows > 8 and chunks >= 8 else 1
    per_warp = 2 if rows > 16 else 1
    short = rows > 8 and p.native
    depth = 3 if short or (rows <= 8 and p.registers <= 20) else 2
    while _registers(rows, p, per_warp, depth) > 248 and depth > 1:
        depth -= 1
    if _registers(rows, p, per_warp, depth) > 248:
        per_warp = 1
    tiles = ceil_div(n_out, layout.TILE)
    return _split(rows, chunks, tiles, p, cluster, per_warp, depth, short=short)


def configs(rows: int, k: int, n_out: int, n: int, m: int) -> list[Config]:
    """Return the splits that are worth timing, the default first."""
    p = layout.plan(n, m)
    chunks, tiles = ceil_div(k, p.chunk), ceil_div(n_out, layout.TILE)
    first = default(rows, k, n_out, n, m)
    found = [
        _split(rows, chunks, tiles, p, cluster, per_warp, depth, short=short)
        for short in ((False,) if rows <= 8 else (True, False))
        for cluster in ((1, 2) if rows <= 8 else (2, 1))
        if chunks >= 4 * cluster
        for per_warp in (1, 2)
        for depth in (2, 3, 4)
    ]
    return list(dict.fromkeys([first, *(c for c in found if fits(rows, p, c))]))


def _split(
    rows: int,
    chunks: int,
    tiles: int,
    p: layout.Plan,
    cluster: int,
    per_warp: int,
    depth: int,
    *,
    short: bool,
) -> Config:
    """Give every cluster an equal part of the tiles, and each tile as many warps as fit.

    ``short`` panels of x, and few: more rows are faster with them on an H200.
    """
    registers = _registers(rows, p, per_warp, depth)
    warps = 16 if registers <= 128 else 12 if registers <= 168 else 8
    clusters = _hopper.MULTIPROCESSORS // cluster
    waves = ceil_div(tiles, clusters * warps * per_warp)
    here = ceil_div(ceil_div(tiles, clusters * waves), per_warp) * per_warp
    mine = ceil_div(chunks, cluster)
    held = _hopper.SHARED_BYTES // 3 // rows - 64  # bytes of a row, for three stages
    slices = max(1, min(warps // (here // per_warp), mine, held // (2 * p.chunk)))
    slices = min(slices, 2) if short else slices
    rounds = ceil_div(mine, slices)
    depth = min(depth, rounds)
    panel = depth if depth * slices * 2 * p.chunk <= held and not short else 1
    stride = layout.x_stride(p, panel * slices * p.chunk * 2)
    most = 4 if short else _STAGES
    stages = min(_hopper.SHARED_BYTES // (rows * stride), ceil_div(rounds, panel), most)
    return Config(cluster, here, per_warp, slices, depth, panel, max(stages, 1))


def _registers(rows: int, p: layout.Plan, per_warp: int, depth: int) -> int:
    """Estimate the registers of a lane: sums, chunks under way, what a part of a chunk becomes."""
    wide = ceil_div(rows, 8)  # products of 8 rows
    held = 0 if p.native else p.n * p.m if wide > 1 else p.m
    return per_warp * (4 * wide + depth * p.registers + held) + 4 * len(layout.x_loads(p)) + 48


def fits(rows: int, p: layout.Plan, config: Config) -> bool:
    """Return whether a split fits into a block of the GPU."""
    warps = config.tiles // config.per_warp * config.slices
    stride = layout.x_stride(p, config.panel * config.slices * p.chunk * 2)
    return warps <= _WARPS and config.stages * rows * stride <= _hopper.SHARED_BYTES
