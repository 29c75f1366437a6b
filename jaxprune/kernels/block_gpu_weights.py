"""Gradient of a block-sparse weight on Hopper GPUs: the products of the stored blocks only.

``dW[s] = x[:, rows[s]]^T @ dy[:, columns[s]]``, summed over the tokens. A thread block takes
several stored blocks of one column at once, so that their tile of ``dy`` is read once.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxprune.kernels import block_gpu_mosaic as mosaic
from jaxprune.kernels.block_gpu_mosaic import LANES, MULTIPLIERS, plgpu

_READ = 90.0  # products of a multiprocessor in the time in which it reads one entry from L2


@dataclasses.dataclass(frozen=True)
class WeightConfig:
    """How the product is cut.

    Attributes:
      members: stored blocks that a warpgroup multiplies at once.
      stages: steps of 64 tokens in flight.
      buffer: rows of an output buffer; divides the rows of a block's part.
    """

    members: int = 2
    stages: int = 4
    buffer: int = 64


class Groups(NamedTuple):
    """Stored blocks that are computed together; all int32 of shape (tiles,).

    Attributes:
      column: their block column.
      first: the first slot; the others follow it.
      used: how many, 0 for none.
    """

    column: jax.Array
    first: jax.Array
    used: jax.Array


def group(columns: jax.Array, count: jax.Array, *, number: int, size: int) -> Groups:
    """Cut the slots into groups of one column each.

    Args:
      columns: (S,) int32, rising.
      count: scalar, slots that are in use: those from it on are left out.
      number: block columns.
      size: blocks of a group.

    Returns:
      As many groups as there can be, at most S / size plus one of every column.
    """
    slots = columns.size
    tiles = min(slots, slots // size + number)
    column = lax.iota(jnp.int32, number + 1)
    before = jnp.sum(columns[None, :] < column[:, None], axis=1, dtype=jnp.int32)
    starts = jnp.minimum(before, count)
    groups = (starts[1:] - starts[:-1] + (size - 1)) // size
    earlier = column[None, :-1] <= column[:-1, None]
    upto = jnp.sum(jnp.where(earlier, groups[None, :], 0), axis=1, dtype=jnp.int32)
    tile = lax.iota(jnp.int32, tiles)
    mine = jnp.sum(upto[None, :] <= tile[:, None], axis=1, dtype=jnp.int32)
    mine = jnp.minimum(mine, number - 1)
    first = starts[mine] + (tile - (upto - groups)[mine]) * size
    return Groups(mine, first, jnp.clip(starts[mine + 1] - first, 0, size))


class Plan(NamedTuple):
    """Static sizes of one launch."""

    tokens: int
    groups: int
    block: tuple[int, int]
    part: int  # rows of a block that are computed at once
    wide: bool  # two warpgroups share the blocks and have 64 features each, else the other way
    config: WeightConfig

    @property
    def size(self) -> int:
        """Return the stored blocks of a group."""
        return self.config.members * (1 if self.wide else 2)

    @property
    def parts(self) -> tuple[int, int]:
        """Return how many tiles a block is cut into, along its rows and its columns."""
        features = LANES * (2 if self.wide else 1)
        return self.block[0] // self.part, self.block[1] // features

    @property
    def tiles(self) -> int:
        """Return the number of output tiles."""
        return self.groups * self.parts[0] * self.parts[1]

    @property
    def steps(self) -> int:
        """Return the steps of a tile."""
        return -(-self.tokens // LANES)

    @property
    def shared_bytes(self) -> int:
        """Return the bytes of the ring and of the output buffers."""
        stage = LANES * (LANES * (2 if self.wide else 1) + self.size * self.part)
        return 2 * (self.config.stages * stage + MULTIPLIERS * 2 * self.config.buffer * LANES)


class _Refs(NamedTuple):
    column: Any
    first: Any
    used: Any
    rows: Any
    x: Any
    dy: Any
    out: Any
    x_stages: Any
    dy_stages: Any
    buffers: Any


class _Tile(NamedTuple):
    column: Any
    first: Any
    used: Any
    row: Any  # first row within the block
    features: Any  # first column within the block


def _tile(plan: Plan, refs: _Refs, linear: Any) -> _Tile:
    high, wide = plan.parts
    group = linear // (high * wide)
    inside = lax.rem(linear, jnp.int32(high * wide))
    row = inside // wide * plan.part
    features = lax.rem(inside, jnp.int32(wide)) * (plan.block[1] // wide)
    return _Tile(refs.column[group], refs.first[group], refs.used[group], row, features)


def _copy_tile(plan: Plan, refs: _Refs, ring: mosaic.Ring, tile: _Tile, at: Any) -> None:
    height, width = plan.block
    last = tile.first + tile.used - 1
    # A place past the last block of a group copies that block again: its product is not written.
    starts = [
        refs.rows[jnp.minimum(tile.first + m, last)] * height + tile.row for m in range(plan.size)
    ]

    def step(i: Any, _: None) -> None:
        stage = ring.stage(at + i)
        full = ring.full.at[stage]
        tokens = pl.ds(i * LANES, LANES)
        plgpu.barrier_wait(ring.empty.at[stage])
        for f in range(2 if plan.wide else 1):
            start = tile.column * width + tile.features + f * LANES
            source = refs.dy.at[tokens, pl.ds(start, LANES)]
            plgpu.copy_gmem_to_smem(source, refs.dy_stages.at[stage, f], full)
        for m, start in enumerate(starts):
            source = refs.x.at[tokens, pl.ds(start, plan.part)]
            plgpu.copy_gmem_to_smem(source, refs.x_stages.at[stage, m], full)

    lax.fori_loop(0, plan.steps, step, None)


def _multiply_tile(plan: Plan, refs: _Refs, ring: mosaic.Ring, tile: _Tile, at: Any) -> None:
    members = plan.config.members
    group = lax.axis_index("wg")
    part, base = (group, 0) if plan.wide else (0, group * members)

    def accumulate(*accs: Any) -> list[Any]:
        def step(i: Any, _: None) -> None:
            stage = ring.stage(at + i)
            plgpu.barrier_wait(ring.full.at[stage])
            features = refs.dy_stages.at[stage, part].T
            for m, acc in enumerate(accs):
                plgpu.wgmma(acc, features, refs.x_stages.at[stage, base + m])
            plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(ring.empty.at[stage])

        lax.fori_loop(0, plan.steps, step, None)
        return [acc[...] for acc in accs]

    sums = pl.run_scoped(
        accumulate, *[plgpu.ACC((LANES, plan.part), jnp.float32) for _ in range(members)]
    )
    for m, acc in enumerate(sums):

        @pl.when(base + m < tile.used)
        def _() -> None:
            row = (tile.first + base + m) * plan.block[0] + tile.row
            features = tile.features + part * LANES
            mosaic.store_transposed(acc, refs.buffers.at[group], refs.out, row, features)


def _body(*args: Any, plan: Plan, blocks: int, full: Any, empty: Any, **scratch: Any) -> None:
    refs = _Refs(*args, **scratch)
    ring = mosaic.Ring(full, empty, plan.config.stages)

    def over(run: Any) -> None:
        def body(linear: Any, at: Any) -> Any:
            tile = _tile(plan, refs, linear)

            @pl.when(tile.used > 0)
            def _() -> None:
                run(plan, refs, ring, tile, at)

            return at + jnp.where(tile.used > 0, plan.steps, 0)

        mosaic.over_tiles(plan.tiles, blocks, body)

    mosaic.specialize(ring, over, _copy_tile, _multiply_tile)


def _scratch(plan: Plan, dtype: Any) -> dict[str, Any]:
    stages, features = plan.config.stages, 2 if plan.wide else 1
    return {
        "x_stages": mosaic.tile(stages, plan.size, LANES, plan.part, dtype=dtype),
        "dy_stages": mosaic.tile(stages, features, LANES, LANES, dtype=dtype),
        "buffers": mosaic.tile(MULTIPLIERS, 2, plan.config.buffer, LANES, dtype=dtype),
        **mosaic.ring_types(stages, features + plan.size),
    }


def part_of(height: int) -> int:
    """Return how many rows of a block are computed at once."""
    return next(p for p in (256, 192, 128, 64) if height % p == 0)


def fitting(block: tuple[int, int], members: int) -> tuple[int, int]:
    """Return as many stages as fit the shared memory, up to 6, and the rows of a buffer."""
    part, wide = part_of(block[0]), block[1] % (2 * LANES) == 0
    for stages in (6, 5, 4, 3, 2):
        for buffer in (64, 32, 16):
            config = WeightConfig(members, stages, buffer)
            plan = Plan(1, 1, block, part, wide, config)
            if plan.shared_bytes <= mosaic.SHARED_BYTES - 1024:
                return stages, buffer
    raise AssertionError(block)


def estimate(
    slots: int, columns: int, block: tuple[int, int], config: WeightConfig, processors: int
) -> float:
    """Return the time of the busiest multiprocessor, in units of a step's matrix product.

    A step takes as long as its products or, if that is longer, as reading its tiles at the rate
    that the L2 cache gives all multiprocessors.
    """
    wide = block[1] % (2 * LANES) == 0
    plan = Plan(1, 1, block, part_of(block[0]), wide, config)
    groups = min(slots, -(-slots // plan.size) + columns // 2)
    rounds = -(-groups * plan.parts[0] * plan.parts[1] // processors)
    features = LANES * (2 if wide else 1)
    products = features * plan.size * plan.part
    reads = (features + plan.size * plan.part) * _READ
    return rounds * max(products, reads)


@functools.partial(jax.jit, static_argnames=("block", "config", "blocks", "interpret"))
def product(
    x: jax.Array,
    dy: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    count: jax.Array,
    *,
    block: tuple[int, int],
    config: WeightConfig,
    blocks: int,
    interpret: Any = None,
) -> jax.Array:
    """Multiply the columns of x by those of dy, for the stored blocks.

    Args:
      x: (tokens, K) bfloat16 or float16.
      dy: (tokens, N) of the same type.
      rows: (S,) int32 block rows.
      columns: (S,) int32 block columns, rising.
      count: scalar, slots in use.
      block: height and width, multiples of 64.
      config: how the product is cut.
      blocks: thread blocks that run at the same time.
      interpret: parameters of Pallas' interpreter, for tests.

    Returns:
      (S, height, width) of the type of ``x``, summed in float32; slots from ``count`` on are not
      written.
    """
    height, width = block
    wide = width % (2 * LANES) == 0
    size = config.members * (1 if wide else 2)
    groups = group(columns, count, number=dy.shape[1] // width, size=size)
    plan = Plan(x.shape[0], groups.first.size, block, part_of(height), wide, config)
    blocks = min(blocks, plan.tiles)
    run = mosaic.launch(
        functools.partial(_body, plan=plan, blocks=blocks),
        jax.ShapeDtypeStruct((rows.size * height, width), x.dtype),
        _scratch(plan, x.dtype),
        blocks=blocks,
        name="jaxprune_block_weights",
        interpret=interpret,
    )
    return run(*groups, rows, x, dy).reshape(rows.size, height, width)
