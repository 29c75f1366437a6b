"""The decode kernel (`nm_decode_gpu`): Pallas Mosaic GPU, one lane at a time.

Chunks of k go round the slices: round r of slice s is chunk ``r * slices + s`` of the block's part
of k. A panel of x is a few rounds. Panels lie in a ring in shared memory; barrier `full` of a stage
waits for the copy engine, barrier `empty` for the warps that read it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu
from jaxlib.mlir.dialects import arith, gpu

from jaxprune.kernels import _hopper_lane as lane
from jaxprune.kernels import nm_decode_gpu_layout as layout
from jaxprune.kernels._hopper import ceil_div
from jaxprune.kernels._hopper_lane import Word, mosaic
from jaxprune.kernels.nm_decode_gpu_launch import SUMS, Launch, Place, Ring, place
from jaxprune.kernels.nm_decode_gpu_layout import Config, Packed, Plan

plgpu: Any = mosaic_gpu  # not type-checked: it differs between versions of jax


# Under its own jit it is lowered once for each shape: Pallas numbers what it lowers, so that the
# equal kernels of equal layers would differ and be compiled once for every layer.
@functools.partial(jax.jit, static_argnames=("plan", "config", "n_out"))
def run(x: jax.Array, packed: Packed, *, plan: Plan, config: Config, n_out: int) -> jax.Array:
    """Multiply; x is [rows, K] with K a whole number of chunks."""
    tiles, chunks = packed.values.shape[:2]
    kind = {"bfloat16": "bf16", "float16": "f16"}[x.dtype.name]
    rows, k = x.shape
    it = Launch(plan, config, rows, k, n_out, tiles, chunks, kind)
    shared = max(it.config.stages * it.stage_bytes, it.sum_bytes)
    refs = (plgpu.RefType(),) * 6
    emit = plgpu.inline_mgpu(arg_types=(*refs, *(plgpu.Layout.WG_SPLAT,) * 2))(
        lambda _, *args: _emit(it, *args)
    )

    def body(x: Any, values: Any, meta: Any, y: Any, panels: Any, barriers: Any) -> None:
        emit(x, values, meta, y, panels, barriers, lax.axis_index("group"), lax.axis_index("rank"))

    return plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((it.rows, n_out), x.dtype),
        grid=(it.groups,),
        grid_names=("group",),
        cluster=(config.cluster,),
        cluster_names=("rank",),
        num_threads=it.warpgroups,
        thread_name="warpgroup",
        scratch_types={
            "panels": plgpu.SMEM((shared // 4,), jnp.int32),
            "barriers": plgpu.SMEM((4 * config.stages,), jnp.int32),
        },
        kernel_name="jaxprune_nm_decode",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
        ),
    )(x, packed.values, packed.meta)


# ------------------------------------------------------------------ code of a lane


def _emit(it: Launch, *args: Any) -> None:
    x, values, meta, y = map(lane.global_address, args[:4])
    panels, barriers = map(lane.shared_address, args[4:6])
    at = place(it, *args[6:])
    ring = Ring(it, at, x, panels, barriers)
    stream = _stream(it, at, values, meta)
    ring.init()
    gpu.barrier()
    with mosaic.when(at.warp.below(it.warps)):
        sums = _multiply(it, at, ring, stream)
        lane.named_sync(8, 32 * it.warps)  # x is no longer needed: the sums take its place
        _share(it, at, ring.panels, sums)
    if it.config.cluster > 1:
        lane.cluster_sync()
    else:
        gpu.barrier()
    _finish(it, at, ring.panels, y)
    if it.config.cluster > 1:
        lane.cluster_sync()  # no block leaves while another reads its sums


Load = Callable[[Word], list[list[Word]]]
"""Begins to load the chunks of a round: the words of each tile of the warp."""


def _stream(it: Launch, at: Place, values: Any, meta: Any) -> Load:
    p = it.plan
    reader = at.lane if p.native else at.lane >> 2
    value_bytes, meta_bytes = p.loads * 512, p.meta_words * 4

    def load(round_: Word) -> list[list[Word]]:
        chunk = round_ * it.config.slices + at.slice
        wanted = chunk.below(at.count)
        words = []
        for tile in _tiles(it, at):
            number = tile.minimum(it.tiles - 1) * it.chunks + at.first + chunk
            here = lane.advanced(values, number, value_bytes)
            here = lane.advanced(here, at.lane * 16)
            got = [lane.load_weights(here, i * 512, 4, wanted) for i in range(p.loads)]
            there = lane.advanced(meta, number, meta_bytes)
            before = 0
            for size in p.metas:
                piece = lane.advanced(there, reader * (4 * size))
                got.append(lane.load_weights(piece, before, size, wanted))
                before += 4 * size * p.readers
            words.append(list(itertools.chain(*got)))
        return words

    return load


def _tiles(it: Launch, at: Place) -> list[Word]:
    first = at.group * it.config.tiles + at.row_group * it.config.per_warp
    return [first + i for i in range(it.config.per_warp)]


Sums = list[Any]
"""Four float32 of each tile of the warp and each 8 rows."""


@dataclasses.dataclass
class _State:
    """What the loop over the rounds carries."""

    sums: Sums
    chunks: list[list[list[Word]]]  # those under way: the words of each tile

    def values(self) -> list[Any]:
        return [*self.sums, *(w.value for chunk in self.chunks for tile in chunk for w in tile)]

    def restored(self, values: Sequence[Any]) -> "_State":
        """Return the state of which these are the values."""
        words = iter(values[len(self.sums) :])
        chunks = [[[Word(next(words)) for _ in tile] for tile in chunk] for chunk in self.chunks]
        return _State(list(values[: len(self.sums)]), chunks)


def _multiply(it: Launch, at: Place, ring: Ring, load: Load) -> Sums:
    """Return the warp's sums over its chunks."""
    depth = it.config.depth
    chunks = [load(Word(d)) for d in range(depth)]
    ring.start()
    zero = mosaic.c(0.0, lane.f32())
    state = _State([zero] * (4 * it.config.per_warp * it.wide), chunks)
    add = _adder(it, at, ring)
    times = it.whole_rounds // depth
    if times:

        @mosaic.fori(mosaic.c(times, lane.i32()), state.values())
        def loop(body: Any, carried: Any) -> list[Any]:
            inner = state.restored(list(carried))
            for d in range(depth):
                inner.sums = add(inner, Word(body), d)
                inner.chunks[d] = load(Word(body) * depth + (d + depth))
            return inner.values()

        state = state.restored(list(loop.results))
    for d in range(it.rounds - times * depth):
        state.sums = add(state, Word(times), d, guarded=times * depth + d >= it.whole_rounds)
    return state.sums


def _adder(it: Launch, at: Place, ring: Ring) -> Callable[..., Sums]:
    """Return a function that multiplies a round's chunk, and enters panels where they begin."""
    depth, panel, slices = it.config.depth, it.config.panel, it.config.slices
    chunk_bytes = it.plan.chunk * 2
    row = at.lane & 7 if it.plan.native else at.lane >> 2
    own = layout.x_offset(it.plan, at.lane) + at.slice * chunk_bytes
    rows = [(row + 8 * b).minimum(it.rows - 1) * it.stride + own for b in range(it.wide)]
    base = Word(0)

    def add(state: _State, body: Word, d: int, *, guarded: bool = False) -> Sums:
        nonlocal base
        if d % panel == 0:
            base = ring.enter(body * (depth // panel) + d // panel)
        x = [r + base + (d % panel) * slices * chunk_bytes for r in rows]
        if not guarded:
            return _product(it, state.sums, state.chunks[d], x, at.lane)
        chunk = (body * depth + d) * slices + at.slice
        return lane.if_else(
            chunk.below(at.count),
            state.sums,
            lambda: _product(it, state.sums, state.chunks[d], x, at.lane),
        )

    return add


def _product(it: Launch, sums: Sums, tiles: list[list[Word]], x: list[Word], place: Word) -> Sums:
    """Add the products of a chunk of each tile; ``x`` are the lane's addresses of each 8 rows."""
    p, sums = it.plan, list(sums)
    parts = p.steps if p.native else p.units
    size = p.chunk * 2 // parts
    for part in range(parts):
        operands = [_operands(p, words, part, place) for words in tiles]
        for b in range(it.wide):
            if p.native:
                loaded = [lane.load_matrices(x[b], part * size)]
            else:
                loaded = [lane.load_shared(x[b], part * size + at) for at in layout.x_loads(p)]
            for tile, mine in enumerate(operands):
                first = 4 * (tile * it.wide + b)
                for step, weights, meta, lanes in mine:
                    tokens = layout.x_fragment(p, loaded, step)
                    sums[first : first + 4] = lane.sparse_product(
                        sums[first : first + 4], weights, tokens, meta, lanes=lanes, kind=it.kind
                    )
    return sums


def _operands(
    p: Plan, words: list[Word], part: int, place: Word
) -> list[tuple[int, list[Word], Word, int]]:
    """Return step, weights, metadata and whose metadata count, for a step or a unit of a tile."""
    values, meta = words[: 4 * p.loads], words[4 * p.loads :]
    if p.native:
        return [(0, *layout.native_operands(values, meta, part))]
    selectors = [Word(0x9988), Word(0xBBAA)]
    found = []
    for plane in range(p.n):
        steps, bits = layout.plane_operands(
            p,
            values,
            meta,
            part * p.n + plane,
            place & 3,
            lambda word, half: lane.sign_bytes(word, selectors[half]),
        )
        found += [(i, weights, bits, 0) for i, weights in enumerate(steps)]
    return found


# ------------------------------------------------------------------ sums of slices and blocks


def _share(it: Launch, at: Place, shared: Word, sums: Sums) -> None:
    """Write the warp's sums to shared memory: [slice, tile, 8 rows, lane, 4]."""
    first = at.slice * it.config.tiles + at.row_group * it.config.per_warp
    start = shared + first * (it.wide * SUMS) + at.lane * 16
    for i in range(it.config.per_warp * it.wide):
        lane.store_sums(start + i * SUMS, sums[4 * i : 4 * i + 4])


def _finish(it: Launch, at: Place, shared: Word, y: Any) -> None:
    """Add the sums of all slices and blocks; the cluster's warps take turns."""
    cluster, tiles = it.config.cluster, it.config.tiles
    workers = 4 * it.warpgroups * cluster
    for turn in range(ceil_div(tiles * it.wide, workers)):
        item = at.rank * (4 * it.warpgroups) + at.warp + turn * workers
        with mosaic.when(item.below(tiles * it.wide)):
            address = shared + item * SUMS + at.lane * 16
            total = None
            for rank in range(cluster):
                for slice_ in range(it.config.slices):
                    here = address + slice_ * (tiles * it.wide * SUMS)
                    got = lane.load_sums(here, Word(rank) if cluster > 1 else None)
                    total = got if total is None else list(map(arith.addf, total, got))
            _store(it, at, item, total or [], y)


def _store(it: Launch, at: Place, item: Word, total: Sums, y: Any) -> None:
    """Write 16 outputs of 8 rows; a lane has two rows of x and two outputs."""
    output = (at.group * it.config.tiles + item // it.wide) * layout.TILE + (at.lane >> 2)
    row = (item % it.wide) * 8 + (at.lane & 3) * 2
    for i, value in enumerate(total):
        r, o = row + i % 2, output + 8 * (i // 2)
        wanted = lane.both(r.below(it.rows), o.below(it.n_out))
        address = lane.advanced(y, r * it.n_out + o, 2)
        lane.store_rounded(address, value, it.kind, wanted)
