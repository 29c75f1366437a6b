"""Block-sparse times dense on Hopper GPUs: every output tile walks the stored blocks of its column.

Forward and the gradient of the input are one kernel: an output tile needs, for every stored block
of one block column (of one block row, for the gradient), the block and the tile of the dense
operand that faces it. Empty blocks cost nothing. The lists of blocks are arrays: a changed mask is
not compiled again.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxprune.kernels import block_gpu_mosaic as mosaic
from jaxprune.kernels.block_gpu_mosaic import LANES, Config, plgpu


class Walk(NamedTuple):
    """Which blocks an output column needs; all int32.

    Attributes:
      order: (columns,) output columns, the ones with most blocks first.
      starts: (columns,) first place of each column in the lists below.
      stops: (columns,) the place after its last.
      faces: (S,) block of the dense operand's columns that faces the stored block.
      slots: (S,) the stored block's place in ``data``.
    """

    order: jax.Array
    starts: jax.Array
    stops: jax.Array
    faces: jax.Array
    slots: jax.Array


def walk(starts: jax.Array, stops: jax.Array, faces: jax.Array, slots: jax.Array) -> Walk:
    """Return the lists with the columns sorted by load."""
    return Walk(mosaic.by_load(stops - starts), starts, stops, faces, slots)


class Plan(NamedTuple):
    """Static sizes of one launch."""

    rows: int
    columns: int  # output block columns
    features: int  # output columns of a block
    depth: int  # contracted entries of a block
    wide: bool  # two warpgroups share 128 features, else two row tiles share 64
    transposed: bool  # a stored block is (features, depth)
    config: Config

    @property
    def parts(self) -> int:
        """Return how many tiles a block column is cut into."""
        return self.features // (LANES * (2 if self.wide else 1))

    @property
    def tokens(self) -> int:
        """Return the rows of a thread block's tile."""
        return self.config.tokens * (1 if self.wide else 2)

    @property
    def row_tiles(self) -> int:
        """Return the number of row tiles."""
        return -(-self.rows // self.tokens)

    @property
    def tiles(self) -> int:
        """Return the number of output tiles."""
        return self.row_tiles * self.columns * self.parts

    @property
    def shared_bytes(self) -> int:
        """Return the bytes of the ring and of the output buffers."""
        weights, dense = (2, 1) if self.wide else (1, 2)
        stage = LANES * (weights * LANES + dense * self.config.tokens)
        buffers = mosaic.MULTIPLIERS * 2 * self.config.buffer * LANES
        return 2 * (self.config.stages * stage + buffers)


class _Tile(NamedTuple):
    tokens: Any  # first row
    column: Any  # output block column
    features: Any  # first feature within the block
    first: Any  # first place in the lists
    steps: Any


def _tile(plan: Plan, refs: "_Refs", linear: Any) -> _Tile:
    row, place = mosaic.place(linear, plan.row_tiles, plan.columns * plan.parts, plan.config.width)
    column = refs.order[place // plan.parts]
    part = lax.rem(place, jnp.int32(plan.parts))
    first = refs.starts[column]
    steps = (refs.stops[column] - first) * (plan.depth // LANES)
    features = part * (plan.features // plan.parts)
    return _Tile(row * plan.tokens, column, features, first, steps)


def _weight_slice(plan: Plan, weights: Any, slot: Any, depth: Any, features: Any) -> Any:
    if plan.transposed:
        start = slot * plan.features + features
        return weights.at[pl.ds(start, LANES), pl.ds(depth, LANES)]
    return weights.at[pl.ds(slot * plan.depth + depth, LANES), pl.ds(features, LANES)]


def _copy_tile(plan: Plan, refs: "_Refs", ring: mosaic.Ring, tile: _Tile, at: Any) -> None:
    """Fill a stage for every step: 64 contracted entries of the block and of the dense operand."""
    sub = plan.depth // LANES
    limit = refs.slots.shape[0] - 1

    def read(i: Any) -> tuple[Any, Any]:
        place = jnp.minimum(tile.first + i // sub, limit)
        return refs.faces[place], refs.slots[place]

    def step(i: Any, now: tuple[Any, Any]) -> tuple[Any, Any]:
        following = read(i + 1)  # a step ahead: its latency is hidden
        face, slot = now
        depth = lax.rem(i, jnp.int32(sub)) * LANES
        stage = ring.stage(at + i)
        full = ring.full.at[stage]
        plgpu.barrier_wait(ring.empty.at[stage])
        for w in range(2 if plan.wide else 1):
            source = _weight_slice(plan, refs.weights, slot, depth, tile.features + w * LANES)
            plgpu.copy_gmem_to_smem(source, refs.weight_stages.at[stage, w], full)
        for r in range(1 if plan.wide else 2):
            rows = pl.ds(tile.tokens + r * plan.config.tokens, plan.config.tokens)
            source = refs.dense.at[rows, pl.ds(face * plan.depth + depth, LANES)]
            plgpu.copy_gmem_to_smem(source, refs.dense_stages.at[stage, r], full)
        return following

    lax.fori_loop(0, tile.steps, step, read(0))


def _multiply_tile(plan: Plan, refs: Any, ring: mosaic.Ring, tile: _Tile, at: Any) -> None:
    """Sum the products of one output tile and write it."""
    group = lax.axis_index("wg")
    mine, other = (group, 0) if plan.wide else (0, group)

    def accumulate(acc: Any) -> Any:
        def step(i: Any, _: None) -> None:
            stage = ring.stage(at + i)
            weights = refs.weight_stages.at[stage, mine]
            plgpu.barrier_wait(ring.full.at[stage])
            dense = refs.dense_stages.at[stage, other].T
            plgpu.wgmma(acc, weights if plan.transposed else weights.T, dense)
            plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(ring.empty.at[stage])

        lax.fori_loop(0, tile.steps, step, None)
        return acc[...]

    acc = pl.run_scoped(accumulate, plgpu.ACC((LANES, plan.config.tokens), jnp.float32))
    tokens = tile.tokens + other * plan.config.tokens
    features = tile.column * plan.features + tile.features + mine * LANES
    mosaic.store_transposed(acc, refs.buffers.at[group], refs.out, tokens, features)


class _Refs(NamedTuple):
    order: Any
    starts: Any
    stops: Any
    faces: Any
    slots: Any
    dense: Any
    weights: Any
    out: Any
    weight_stages: Any
    dense_stages: Any
    buffers: Any


def _body(*args: Any, plan: Plan, blocks: int, full: Any, empty: Any, **scratch: Any) -> None:
    refs = _Refs(*args, **scratch)
    ring = mosaic.Ring(full, empty, plan.config.stages)

    def over(run: Any) -> None:
        def body(linear: Any, at: Any) -> Any:
            tile = _tile(plan, refs, linear)
            run(plan, refs, ring, tile, at)
            return at + tile.steps

        mosaic.over_tiles(plan.tiles, blocks, body)

    mosaic.specialize(ring, over, _copy_tile, _multiply_tile)


def _scratch(plan: Plan, dtype: Any) -> dict[str, Any]:
    weights, dense = (2, 1) if plan.wide else (1, 2)
    config = plan.config
    return {
        "weight_stages": mosaic.tile(config.stages, weights, LANES, LANES, dtype=dtype),
        "dense_stages": mosaic.tile(config.stages, dense, config.tokens, LANES, dtype=dtype),
        "buffers": mosaic.tile(mosaic.MULTIPLIERS, 2, config.buffer, LANES, dtype=dtype),
        **mosaic.ring_types(config.stages, 3),
    }


@functools.partial(
    jax.jit, static_argnames=("transposed", "config", "blocks", "interpret")
)  # under its own jit equal products are lowered once
def product(
    dense: jax.Array,
    data: jax.Array,
    lists: Walk,
    *,
    transposed: bool,
    config: Config,
    blocks: int,
    interpret: Any = None,
) -> jax.Array:
    """Multiply a dense matrix by a block-sparse one.

    Args:
      dense: (rows, C) bfloat16 or float16.
      data: (S, bk, bn) stored blocks of the same type; bk and bn are multiples of 64.
      lists: the blocks of every output column.
      transposed: contract bn and give bk features per block, instead of the other way.
      config: how the product is cut.
      blocks: thread blocks that run at the same time.
      interpret: parameters of Pallas' interpreter, for tests.

    Returns:
      (rows, columns * features) of the type of ``dense``, summed in float32.
    """
    depth, features = data.shape[1:] if not transposed else data.shape[:0:-1]
    columns = lists.order.size
    wide = features % (2 * LANES) == 0
    plan = Plan(dense.shape[0], columns, features, depth, wide, transposed, config)
    blocks = min(blocks, plan.tiles)
    run = mosaic.launch(
        functools.partial(_body, plan=plan, blocks=blocks),
        jax.ShapeDtypeStruct((plan.rows, columns * features), dense.dtype),
        _scratch(plan, dense.dtype),
        blocks=blocks,
        name="jaxprune_block_columns",
        interpret=interpret,
    )
    return run(*lists, dense, data.reshape(-1, data.shape[2]))
