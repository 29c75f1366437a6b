"""The one kernel of the selection: count a digit of every score, in the shared memory of a GPU.

Pallas Mosaic GPU. A block is one warpgroup. It reads its chunk of the scores in tiles, adds 1 to a
counter for every digit, and writes its counters as one row of the result. No memory has to be
cleared beforehand, and the rows say how the entries of a value are spread over the array.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith

from jaxprune._core.images import ordered_bits

plgpu: Any = mosaic_gpu  # not type-checked: both differ between versions of jax
mosaic: Any = utils

# Lanes of a warp that meet in one counter wait for each other. Lanes count in different copies,
# and the gap puts the copies of a counter in different banks.
_COPIES = 4
_GAP = 32 // _COPIES


def _add_one(bins: int) -> Any:
    """Return a device function that adds 1 to the counter of every slot below ``bins``."""

    def emit(_: Any, counters: Any, slots: Any) -> None:
        i32 = ir.IntegerType.get_signless(32)
        lane = arith.andi(mosaic.thread_idx(), mosaic.c(_COPIES - 1, i32))
        start = arith.muli(lane, mosaic.c(4 * (bins + _GAP), i32))
        base = mosaic.memref_ptr(counters)
        base = mosaic.getelementptr(base, [start], ir.IntegerType.get_signless(8))

        def add(slot: Any, _: Any) -> None:
            inside = arith.cmpi(arith.CmpIPredicate.ult, slot, mosaic.c(bins, i32))
            counter = mosaic.getelementptr(base, [slot], i32)
            mosaic.inline_ptx("red.shared.add.u32 [$0], 1;", counter, predicate=inside)

        slots.foreach(add)

    return emit


@plgpu.inline_mgpu()
def _wait(_: Any) -> None:
    mosaic.warpgroup_barrier()


def _count_chunk(
    scores: Any, query: Any, counts: Any, counters: Any, *, tile: int, per_block: int, bins: int
) -> None:
    """Count one block's chunk; refs: scores (n,), query (2,), counts (blocks, bins)."""
    vector = 16 // scores.dtype.itemsize
    layout = plgpu.Layout.WG_STRIDED((tile,), vec_size=vector)
    add_one = plgpu.inline_mgpu(arg_types=(plgpu.RefType(), layout))(_add_one(bins))
    block = lax.axis_index("block")
    copies = [counters.at[pl.ds(c * (bins + _GAP), bins)] for c in range(_COPIES)]
    for copy in copies:
        copy[...] = jnp.zeros((bins,), jnp.int32)
    first = block * per_block
    tiles = jnp.clip(scores.shape[0] // tile - first, 0, per_block)
    shift, base = query[0], query[1]

    def body(i: Any, _: None) -> None:
        words = plgpu.load(scores.at[pl.ds((first + i) * tile, tile)], layout=layout)
        image = ordered_bits(words).astype(jnp.uint32)
        add_one(counters, (image >> shift) ^ base)

    lax.fori_loop(0, tiles, body, None)
    _wait()
    counts[block] = functools.reduce(jnp.add, [copy[...] for copy in copies])


# Under its own jit it is lowered once for each shape: Pallas numbers what it lowers, so that equal
# kernels would differ and be compiled once for every digit of every array.
@functools.partial(jax.jit, static_argnames=("tile", "per_block", "bins"))
def digit_counts(
    scores: jax.Array, query: jax.Array, *, tile: int, per_block: int, bins: int
) -> jax.Array:
    """Count ``(image >> query[0]) ^ query[1]`` where below ``bins``, in the array's whole tiles.

    Args:
      scores: (n,) floating-point; the entries past the last whole tile are not read.
      query: (2,) uint32: the shift, and what the shifted image is compared with.
      tile: entries that a block reads at once, a multiple of 128 vectors of 16 bytes.
      per_block: tiles of a block.
      bins: number of counters.

    Returns:
      (blocks, bins) int32, where blocks = ceil(n / (tile * per_block)).
    """
    blocks = -(-scores.shape[0] // (tile * per_block))
    return plgpu.kernel(
        functools.partial(_count_chunk, tile=tile, per_block=per_block, bins=bins),
        out_type=jax.ShapeDtypeStruct((blocks, bins), jnp.int32),
        scratch_types={"counters": plgpu.SMEM((_COPIES * (bins + _GAP),), jnp.int32)},
        grid=(blocks,),
        grid_names=("block",),
        kernel_name="jaxprune_digit_counts",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    )(scores, query)
