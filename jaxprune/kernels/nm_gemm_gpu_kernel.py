"""The 2:4 kernel for many rows (`nm_gemm_gpu`): Pallas Mosaic GPU with one instruction of our own.

Two warpgroups multiply, 64 outputs each; a third streams tiles of weights, metadata and x through a
ring in shared memory and never waits for the end of an output tile. In a cluster of two blocks each
loads half of a tile of x for both. Where k is split, every part writes its sums in float32, as they
lie in registers; XLA adds them up.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mosaic_dialect
from jax.experimental.mosaic.gpu import fragmented_array, mma_utils, utils
from jax.experimental.pallas import mosaic_gpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector

from jaxprune.kernels import _hopper
from jaxprune.kernels._hopper import ceil_div
from jaxprune.kernels.nm_gemm_gpu_layout import BLOCK, DEPTH, Config, Packed

# Not type-checked: they differ between versions of jax.
plgpu: Any = mosaic_gpu
mgpu: Any = mosaic_dialect
mma: Any = mma_utils
fragments: Any = fragmented_array
mosaic: Any = utils

_SUMS = 32  # rows of a piece of float32 sums that is written at once
_WEIGHTS = (plgpu.TilingTransform((8, DEPTH // 2)), plgpu.SwizzleTransform(DEPTH))
_ROWS = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
_FLOATS = (plgpu.TilingTransform((8, _SUMS)), plgpu.SwizzleTransform(128))


# Under its own jit it is lowered once for each shape, as the kernels of equal layers are equal.
@functools.partial(jax.jit, static_argnames=("config", "emulate"))
def run(x: jax.Array, packed: Packed, config: Config, emulate: Any = None) -> jax.Array:
    """Multiply; x is [rows, K], the rows a multiple of 8 and at least those of a tile."""
    rows, k = x.shape
    n_out = packed.values.shape[0]
    splits = math.gcd(config.splits, k // DEPTH)
    stages = min(config.stages, k // DEPTH // splits)
    cluster = config.cluster
    barrier = plgpu.Barrier
    if cluster > 1:
        barrier = functools.partial(plgpu.ClusterBarrier, collective_axes=("cluster",))
    body = functools.partial(
        _body,
        config=config._replace(splits=splits, stages=stages),
        shape=(rows, k, n_out),
        emulate=emulate is not None,
    )
    out = jax.ShapeDtypeStruct((rows, n_out), x.dtype)
    pieces = plgpu.SMEM((2, 2, min(64, config.rows), 64), x.dtype, transforms=_ROWS)
    if splits > 1:
        out = jax.ShapeDtypeStruct((splits, n_out, rows), jnp.float32)
        pieces = plgpu.SMEM((2, 2, 64, _SUMS), jnp.float32, transforms=_FLOATS)
    y = plgpu.kernel(
        body,
        out_type=out,
        grid=(_hopper.MULTIPROCESSORS // cluster,),
        grid_names=("sm",),
        cluster=(cluster,),
        cluster_names=("cluster",),
        num_threads=3,
        thread_name="warpgroup",
        scratch_types={
            "weights": plgpu.SMEM((stages, BLOCK, DEPTH // 2), x.dtype, transforms=_WEIGHTS),
            "tokens": plgpu.SMEM((stages, config.rows, DEPTH), x.dtype, transforms=_ROWS),
            "words": plgpu.SMEM((stages, 2, 2 * DEPTH), jnp.int32),
            "pieces": pieces,
            "full": plgpu.Barrier(num_arrivals=3, num_barriers=stages),
            "empty": barrier(num_arrivals=2, num_barriers=stages),
        },
        kernel_name="jaxprune_nm_gemm",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        **({} if emulate is None else {"interpret": emulate}),
    )(x, packed.values, packed.meta)
    return y if splits == 1 else jnp.sum(y, 0).T.astype(x.dtype)


def _body(
    x: Any,
    values: Any,
    meta: Any,
    y: Any,
    weights: Any,
    tokens: Any,
    words: Any,
    pieces: Any,
    full: Any,
    empty: Any,
    *,
    config: Config,
    shape: tuple[int, int, int],
    emulate: bool,
) -> None:
    rows, k, n_out = shape
    stages, steps = config.stages, k // DEPTH // config.splits
    warpgroup, rank = lax.axis_index("warpgroup"), lax.axis_index("cluster")
    tiles = (ceil_div(n_out, BLOCK * config.cluster), ceil_div(rows, config.rows))
    fewer, more = (40, 232) if config.rows > 128 else (88, 208)  # registers, 512 of three in all
    product = _emulated if emulate else _sparse_product(config.rows, x.dtype)

    def place(index: Any) -> tuple[Any, Any, Any]:
        """Return part of k, first output and row of a tile; the last tiles are moved back."""
        part, index = index // math.prod(tiles), index % math.prod(tiles)
        i, j = plgpu.planar_snake(index, tiles, 1, config.width)
        output = jnp.minimum((i * config.cluster + rank) * BLOCK, n_out - BLOCK)
        return part, output, jnp.minimum(j * config.rows, rows - config.rows)

    def each_step(visit: Any, carry: Any) -> Any:
        """Call ``visit(step, stage, carry)`` for all steps of a part; it begins at stage 0."""

        def turn(i: Any, carry: Any) -> Any:
            for stage in range(stages):
                carry = visit(i * stages + stage, stage, carry)
            return carry

        turns, rest = divmod(steps, stages)
        carry = lax.fori_loop(0, turns, turn, carry)
        for stage in range(rest):
            carry = visit(turns * stages + stage, stage, carry)
        return carry

    def each_tile(visit: Any) -> None:
        @plgpu.nd_loop((math.prod(tiles) * config.splits,), collective_axes="sm")
        def _(info: Any) -> None:
            visit(*place(info.index[0]))

    def load(part: Any, output: Any, row: Any) -> None:
        def step(i: Any, stage: int, _: Any) -> Any:
            i += part * steps
            together = {"collective_axes": "cluster"} if config.cluster > 1 else {}
            here = (pl.ds(output, BLOCK), pl.ds(i * (DEPTH // 2), DEPTH // 2))
            there = (pl.ds(output // 64, 2), pl.ds(i * (2 * DEPTH), 2 * DEPTH))
            lines = (pl.ds(row, config.rows), pl.ds(i * DEPTH, DEPTH))
            plgpu.barrier_wait(empty.at[stage])
            plgpu.copy_gmem_to_smem(values.at[here], weights.at[stage], full.at[stage])
            plgpu.copy_gmem_to_smem(meta.at[there], words.at[stage], full.at[stage])
            plgpu.copy_gmem_to_smem(x.at[lines], tokens.at[stage], full.at[stage], **together)
            return 0

        each_step(step, 0)

    def multiply(part: Any, output: Any, row: Any) -> None:
        mine = pl.ds(warpgroup * 64, 64)

        def step(_: Any, stage: int, sums: Any) -> Any:
            plgpu.barrier_wait(full.at[stage])
            sums = product(
                sums, weights.at[stage, mine], tokens.at[stage], words.at[stage, warpgroup]
            )
            plgpu.barrier_arrive(empty.at[stage])
            return sums

        zeros = jnp.zeros((64, config.rows), jnp.float32)
        sums = each_step(step, plgpu.layout_cast(zeros, plgpu.Layout.WGMMA))
        outputs = pl.ds(output + warpgroup * 64, 64)
        wide = min(64, config.rows) if config.splits == 1 else _SUMS
        for i in range(config.rows // wide):
            piece, lines = pieces.at[warpgroup, i % 2], pl.ds(row + i * wide, wide)
            found = sums[:, i * wide : (i + 1) * wide]
            plgpu.wait_smem_to_gmem(1, wait_read_only=True)
            if config.splits == 1:
                piece.T[...] = found.astype(x.dtype)
            else:
                piece[...] = found
            plgpu.commit_smem()
            there = y.at[lines, outputs] if config.splits == 1 else y.at[part, outputs, lines]
            plgpu.copy_smem_to_gmem(piece, there)

    def load_all() -> None:
        plgpu.set_max_registers(fewer, action="decrease")
        each_tile(load)
        for stage in range(stages):  # leave the barriers as they were
            plgpu.barrier_wait(empty.at[stage])

    def multiply_all() -> None:
        plgpu.set_max_registers(more, action="increase")
        for stage in range(stages):
            plgpu.barrier_arrive(empty.at[stage])
        each_tile(multiply)
        plgpu.wait_smem_to_gmem(0)

    lax.cond(warpgroup == 2, load_all, multiply_all)


# ------------------------------------------------------------------ the product of a step


def _sparse_product(rows: int, dtype: Any) -> Any:
    """Return a device function that adds a step to sums: [64, rows] += weights @ tokens.T."""
    kind = {"bfloat16": "bf16", "float16": "f16"}[jnp.dtype(dtype).name]
    layout = plgpu.Layout.WGMMA

    @plgpu.inline_mgpu(
        arg_types=(layout, plgpu.RefType(_WEIGHTS), plgpu.RefType(_ROWS), plgpu.RefType()),
        return_type=plgpu.ShapeDtypeStruct((64, rows), jnp.float32, layout=layout),
    )
    def add(_: Any, sums: Any, weights: Any, tokens: Any, words: Any) -> Any:
        sparse = _descriptor(weights, DEPTH, (64, DEPTH // 2), (64, DEPTH // 2), False)
        tokens = mgpu.memref_transpose(tokens, (1, 0, 3, 2))  # k first
        dense = _descriptor(tokens, 128, (64, 64), (64, rows), True)
        accumulator = mgpu.WGMMAAccumulator.from_registers(sums)  # fences
        registers = accumulator._value.registers
        emitted = _emit(registers, sparse, dense, _metadata(words), rows, kind)
        _asm("wgmma.commit_group.sync.aligned;")
        _asm("wgmma.wait_group.sync.aligned 0;")
        done = fragments.FragmentedArray(
            _registers=emitted, _layout=accumulator._value.layout, _is_signed=None
        )
        return fragments.optimization_barrier(done.to_layout(sums.layout))

    return add


def _asm(code: str) -> None:
    llvm.inline_asm(ir.Type.parse("!llvm.void"), [], code, "", has_side_effects=True)


def _descriptor(
    ref: Any, swizzle: int, tile: tuple[int, int], group: tuple[int, int], k_major: bool
) -> Any:
    (descriptor, _), _, fastest = mma.create_descriptor(
        ref, swizzle=swizzle, large_tile=tile, group_size=group, logical_k_major=k_major
    )
    assert fastest == mma.Dim.K, fastest
    return descriptor


def _metadata(words: Any) -> list[Any]:
    """Load the two words of this lane, of the two steps of 32 k."""
    i32 = ir.IntegerType.get_signless(32)
    thread = arith.remui(mosaic.thread_idx(), mosaic.c(128, i32))
    pair = arith.muli(arith.divui(thread, mosaic.c(4, i32)), mosaic.c(2, i32))
    pair = arith.addi(pair, arith.remui(thread, mosaic.c(2, i32)))
    index = arith.index_cast(ir.IndexType.get(), arith.muli(pair, mosaic.c(2, i32)))
    both = vector.load(ir.VectorType.get((2,), i32), words, [index])
    return [vector.extract(both, dynamic_position=[], static_position=[i]) for i in range(2)]


def _emit(
    registers: Any, sparse: Any, dense: Any, metadata: list[Any], rows: int, kind: str
) -> Any:
    """Emit one instruction for each 32 k."""
    i32, i64 = (ir.IntegerType.get_signless(bits) for bits in (32, 64))
    number = rows // 2
    one = ir.VectorType.get((1,), ir.F32Type.get())
    sums = list(registers.flat)
    assert len(sums) == number and sums[0].type == one, (len(sums), sums[0].type)
    names = ",".join(f"${i}" for i in range(number))
    first = 2 * number  # the operands after the sums: descriptors, metadata, constants
    a, b, meta, selector, keep, sa, sb, ta, tb = (f"${first + i}" for i in range(9))
    code = (
        f"{{ .reg .pred p; setp.ne.b32 p, {keep}, 0; "
        f"wgmma.mma_async.sp.sync.aligned.m64n{rows}k32.f32.{kind}.{kind} "
        f"{{{names}}}, {a}, {b}, {meta}, {selector}, p, {sa}, {sb}, {ta}, {tb}; }}\n"
    )
    tied = [str(i) for i in range(number)]
    constraints = ",".join(["=f"] * number + tied + ["l", "l", "r"] + ["n"] * 6)
    constants = [
        llvm.ConstantOp(i32, ir.IntegerAttr.get(i32, v)).result for v in (0, 1, 1, 1, 0, 0)
    ]
    for step, word in enumerate(metadata):
        operands = [_moved(sparse, 32 * step, i64), _moved(dense, 64 * step, i64), word]
        out: Any = llvm.inline_asm(
            llvm.StructType.get_literal([one] * number),
            [*sums, *operands, *constants],
            code,
            constraints,
            asm_dialect=0,
            has_side_effects=True,
        )
        sums = [llvm.extractvalue(one, out, [i]) for i in range(number)]
    return np.array(sums, dtype=object).reshape(registers.shape)


def _moved(descriptor: Any, offset: int, i64: Any) -> Any:
    """Move a descriptor by bytes; it counts in 16."""
    if not offset:
        return descriptor
    more = llvm.ConstantOp(i64, ir.IntegerAttr.get(i64, offset // 16)).result
    return llvm.add(descriptor, more, overflow_flags=llvm.IntegerOverflowFlags.none)


def _emulated(sums: Any, weights: Any, tokens: Any, words: Any) -> Any:
    """Do the same in jax, decoding the metadata word by word, for Pallas's interpreter."""
    word = lax.bitcast_convert_type(words[...], jnp.uint32)
    word = word.reshape(4, 8, 2, 2)  # warp, row, lane % 2, step of 32 k
    half = jnp.stack([word & 0xFFFF, word >> 16], 1)  # warp, half, row, lane % 2, step
    nibbles = jnp.stack([(half >> (4 * i)) & 15 for i in range(4)], -1)
    nibbles = nibbles.transpose(0, 1, 2, 4, 3, 5).reshape(64, DEPTH // 4, 1)
    pairs = weights[...].reshape(64, DEPTH // 4, 2)
    place = lax.broadcasted_iota(jnp.uint32, (64, DEPTH // 4, 4), 2)
    zero = jnp.zeros((), pairs.dtype)
    dense = jnp.where((nibbles & 3) == place, pairs[..., :1], zero)
    dense = dense + jnp.where((nibbles >> 2) == place, pairs[..., 1:], zero)
    dense = dense.reshape(64, DEPTH)
    return sums + jnp.dot(dense, tokens[...].T, preferred_element_type=jnp.float32)
