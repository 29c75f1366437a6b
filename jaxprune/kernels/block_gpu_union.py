"""Block-sparse times dense for blocks 64 wide and low sparsity: four columns share the dense tiles.

A tile of the dense operand is three quarters of what a 64-wide column reads. Here a cluster of two
thread blocks has four neighbouring columns, one a warpgroup, and both walk the union of their
lists; each tile of the dense operand is read once and goes to both. A warpgroup passes over the
steps that its column does not have. Above some sparsity the union costs more than it saves.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxprune.kernels import block_gpu_mosaic as mosaic
from jaxprune.kernels.block_gpu_columns import Walk
from jaxprune.kernels.block_gpu_mosaic import LANES, MULTIPLIERS, Config, plgpu

_CLUSTER = 2
_COLUMNS = _CLUSTER * MULTIPLIERS
_WORD = 32  # steps whose flags are one word


class Union(NamedTuple):
    """What groups of four columns walk; all int32.

    Attributes:
      order: (groups,) the ones with the most steps first.
      steps: (groups,) block rows that any of the four columns has.
      faces: (groups, F) those block rows, rising.
      slots: (groups, F, 4) where each column's block is stored, -1 for none.
      flags: (groups, 4, ceil(F / 32)) bit i of word j: whether the column has step 32 j + i.
    """

    order: jax.Array
    steps: jax.Array
    faces: jax.Array
    slots: jax.Array
    flags: jax.Array


def unite(lists: Walk, faces: int) -> Union:
    """Return the unions of the lists of four columns each.

    Args:
      lists: as for `block_gpu_columns.product`.
      faces: blocks of the contracted axis.
    """
    table = _table(lists, faces)
    present = jnp.any(table >= 0, axis=1)
    steps = jnp.sum(present, axis=1, dtype=jnp.int32)
    cells = (*present.shape, faces)  # (groups, step, face)
    step, face = (lax.broadcasted_iota(jnp.int32, cells, axis) for axis in (1, 2))
    rank = jnp.cumsum(present, axis=1, dtype=jnp.int32) - 1
    hit = present[:, None, :] & (rank[:, None, :] == step)
    listed = jnp.sum(jnp.where(hit, face, 0), axis=2, dtype=jnp.int32)
    slots = jnp.take_along_axis(table, listed[:, None, :], axis=2)
    unused = lax.broadcasted_iota(jnp.int32, slots.shape, 2) >= steps[:, None, None]
    slots = jnp.where(unused, -1, slots)
    return Union(
        mosaic.by_load(steps), steps, listed, jnp.swapaxes(slots, 1, 2), _flags(slots >= 0)
    )


def _flags(bits: jax.Array) -> jax.Array:
    """Return words of 32 flags of the last axis, the first in the lowest bit."""
    bits = jnp.pad(bits, ((0, 0), (0, 0), (0, -bits.shape[2] % _WORD)))
    bits = bits.reshape(*bits.shape[:2], -1, _WORD).astype(jnp.uint32)
    place = lax.broadcasted_iota(jnp.uint32, bits.shape, 3)
    return lax.bitcast_convert_type(jnp.sum(bits << place, axis=3, dtype=jnp.uint32), jnp.int32)


def _table(lists: Walk, faces: int) -> jax.Array:
    """Return the slot of every block, (groups, 4, faces), -1 where none is stored."""
    columns = lists.order.size
    groups = -(-columns // _COLUMNS)
    place = lax.iota(jnp.int32, lists.slots.size)
    owner = jnp.sum(lists.stops[None, :] <= place[:, None], axis=1, dtype=jnp.int32)
    owner = jnp.minimum(owner, columns - 1)
    listed = (place >= lists.starts[owner]) & (place < lists.stops[owner])
    none = lists.slots.size  # larger than every slot: a padding slot never hides a block
    row = jnp.where(listed, owner, groups * _COLUMNS)
    table = jnp.full((groups * _COLUMNS, faces), none, jnp.int32)
    table = table.at[row, lists.faces].min(lists.slots, mode="drop")
    return jnp.where(table < none, table, -1).reshape(groups, _COLUMNS, faces)


class Plan(NamedTuple):
    """Static sizes of one launch."""

    rows: int
    columns: int
    transposed: bool
    config: Config

    @property
    def groups(self) -> int:
        """Return the number of groups of four columns."""
        return -(-self.columns // _COLUMNS)

    @property
    def row_tiles(self) -> int:
        """Return the number of row tiles."""
        return -(-self.rows // self.config.tokens)

    @property
    def tiles(self) -> int:
        """Return the number of tiles of the clusters."""
        return self.row_tiles * self.groups

    @property
    def shared_bytes(self) -> int:
        """Return the bytes of the ring and of the output buffers."""
        stage = LANES * (MULTIPLIERS * LANES + self.config.tokens)
        return 2 * (self.config.stages * stage + MULTIPLIERS * 2 * self.config.buffer * LANES)


class _Refs(NamedTuple):
    order: Any
    steps: Any
    faces: Any
    slots: Any
    flags: Any
    dense: Any
    weights: Any
    out: Any
    weight_stages: Any
    dense_stages: Any
    buffers: Any


class _Tile(NamedTuple):
    tokens: Any
    group: Any
    steps: Any


def _tile(plan: Plan, refs: _Refs, linear: Any) -> _Tile:
    row, place = mosaic.place(linear, plan.row_tiles, plan.groups, plan.config.width)
    group = refs.order[place]
    return _Tile(row * plan.config.tokens, group, refs.steps[group])


def _copy_tile(plan: Plan, refs: _Refs, ring: mosaic.Ring, tile: _Tile, at: Any) -> Any:
    block = lax.axis_index("cluster")
    limit = refs.faces.shape[1] - 1

    def read(i: Any) -> tuple[Any, ...]:
        i = jnp.minimum(i, limit)
        column = block * MULTIPLIERS
        slots = [refs.slots[tile.group, i, column + w] for w in range(MULTIPLIERS)]
        return refs.faces[tile.group, i], *slots

    def step(i: Any, now: tuple[Any, ...]) -> tuple[Any, ...]:
        following = read(i + 1)  # a step ahead: its latency is hidden
        face, *slots = now
        stage = ring.stage(at + i)
        full = ring.full.at[stage]
        plgpu.barrier_wait(ring.empty.at[stage])
        for w, slot in enumerate(slots):

            @pl.when(slot >= 0)
            def _() -> None:
                source = refs.weights.at[pl.ds(slot * LANES, LANES)]
                plgpu.copy_gmem_to_smem(source, refs.weight_stages.at[stage, w], full)

            @pl.when(slot < 0)
            def _() -> None:
                plgpu.barrier_arrive(full)

        rows = pl.ds(tile.tokens, plan.config.tokens)
        source = refs.dense.at[rows, pl.ds(face * LANES, LANES)]
        plgpu.copy_gmem_to_smem(
            source, refs.dense_stages.at[stage], full, collective_axes="cluster"
        )
        return following

    lax.fori_loop(0, tile.steps, step, read(0))
    return at + tile.steps


def _multiply_tile(plan: Plan, refs: _Refs, ring: mosaic.Ring, tile: _Tile, at: Any) -> Any:
    group = lax.axis_index("wg")
    mine = lax.axis_index("cluster") * MULTIPLIERS + group

    def accumulate(acc: Any) -> Any:
        def word(j: Any, _: None) -> None:
            flags = refs.flags[tile.group, mine, j]

            def step(i: Any, _: None) -> None:
                stage = ring.stage(at + j * _WORD + i)
                plgpu.barrier_wait(ring.full.at[stage])

                @pl.when((flags >> i) & 1 == 1)
                def _() -> None:
                    weights = refs.weight_stages.at[stage, group]
                    dense = refs.dense_stages.at[stage].T
                    plgpu.wgmma(acc, weights if plan.transposed else weights.T, dense)
                    plgpu.wgmma_wait(0)

                plgpu.barrier_arrive(ring.empty.at[stage])

            lax.fori_loop(0, jnp.minimum(_WORD, tile.steps - j * _WORD), step, None)

        lax.fori_loop(0, (tile.steps + _WORD - 1) // _WORD, word, None)
        return acc[...]

    acc = pl.run_scoped(accumulate, plgpu.ACC((LANES, plan.config.tokens), jnp.float32))
    column = tile.group * _COLUMNS + mine

    @pl.when(column < plan.columns)
    def _() -> None:
        buffers = refs.buffers.at[group]
        mosaic.store_transposed(acc, buffers, refs.out, tile.tokens, column * LANES)

    return at + tile.steps


def _body(*args: Any, plan: Plan, blocks: int, full: Any, empty: Any, **scratch: Any) -> None:
    refs = _Refs(*args, **scratch)
    ring = mosaic.Ring(full, empty, plan.config.stages)

    def over(run: Any) -> None:
        mosaic.over_tiles(
            plan.tiles, blocks, lambda i, at: run(plan, refs, ring, _tile(plan, refs, i), at)
        )

    mosaic.specialize(ring, over, _copy_tile, _multiply_tile)


def _scratch(plan: Plan, dtype: Any) -> dict[str, Any]:
    config = plan.config
    types = mosaic.ring_types(config.stages, MULTIPLIERS + 1)
    types["empty"] = plgpu.ClusterBarrier(
        collective_axes=("cluster",), num_arrivals=MULTIPLIERS, num_barriers=config.stages
    )
    return {
        "weight_stages": mosaic.tile(config.stages, MULTIPLIERS, LANES, LANES, dtype=dtype),
        "dense_stages": mosaic.tile(config.stages, config.tokens, LANES, dtype=dtype),
        "buffers": mosaic.tile(MULTIPLIERS, 2, config.buffer, LANES, dtype=dtype),
        **types,
    }


@functools.partial(
    jax.jit, static_argnames=("columns", "transposed", "config", "blocks", "interpret")
)
def product(
    dense: jax.Array,
    data: jax.Array,
    union: Union,
    *,
    columns: int,
    transposed: bool,
    config: Config,
    blocks: int,
    interpret: Any = None,
) -> jax.Array:
    """Multiply a dense matrix by a block-sparse one of 64 x 64 blocks.

    Args:
      dense: (rows, C) bfloat16 or float16.
      data: (S, 64, 64) stored blocks of the same type.
      union: what the groups of columns walk.
      columns: output block columns.
      transposed: contract the blocks' second axis instead of the first.
      config: how the product is cut.
      blocks: thread blocks that run at the same time.
      interpret: parameters of Pallas' interpreter, for tests.

    Returns:
      (rows, columns * 64) of the type of ``dense``, summed in float32.
    """
    plan = Plan(dense.shape[0], columns, transposed, config)
    blocks = min(blocks // _CLUSTER, plan.tiles)
    run = mosaic.launch(
        functools.partial(_body, plan=plan, blocks=blocks),
        jax.ShapeDtypeStruct((plan.rows, columns * LANES), dense.dtype),
        _scratch(plan, dense.dtype),
        blocks=blocks,
        name="jaxprune_block_union",
        interpret=interpret,
        cluster=(_CLUSTER,),
        cluster_names=("cluster",),
    )
    return run(*union, dense, data.reshape(-1, LANES))
