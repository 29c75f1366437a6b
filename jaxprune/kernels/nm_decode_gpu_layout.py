"""How N:M weights lie in memory for the decode kernel, and which lane holds what.

Weights are cut into tiles of 16 outputs and chunks of k. A warp reads a chunk with 16-byte loads:
lane l = 4g + c takes what it multiplies itself, rows g and g + 8 (`low` and `high`).

The instruction, `mma.sp.m16n8k32`, multiplies 16 x 32 weights with 2 of every 4 stored. Two bits of
metadata tell the place of each stored weight in its group of 4, in rising order:

* 2:4 is what the hardware wants. Lanes 0 and 1 of a quad carry the metadata of even steps of 32 k,
  lanes 2 and 3 those of odd steps.
* n of m = 4, 8, 16 is stored as n planes of 1:m. Two groups G and H of a row share one word of two
  values. The m / 2 hardware groups ``[G[2i], G[2i + 1], H[2i], H[2i + 1]]`` make one product each;
  the value of G counts where its position is 2i or 2i + 1, and is masked to zero elsewhere. The
  metadata are ``position & 1`` and ``2 + (position & 1)``: always rising, the same for all i. The
  higher bits of the position become masks by sign replication.

A unit is 8 groups of each row: 8m consecutive k.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TILE = 16  # outputs of a tile
STEP = 32  # k of an instruction


class Packed(NamedTuple):
    """Weights in the order in which the lanes read them.

    ``values [N / 16, K / chunk, v]`` of the weights' type, ``meta [N / 16, K / chunk, w] int32``.
    N and K are rounded up to whole tiles and chunks, with zeros.
    """

    values: jax.Array
    meta: jax.Array


class Config(NamedTuple):
    """How the work is split.

    Attributes:
      cluster: blocks that share k, 1 or 2.
      tiles: tiles of 16 outputs of a cluster, a multiple of ``per_warp``.
      per_warp: tiles of a warp, 1 or 2. Two read x from shared memory once.
      slices: warps that share the k of a tile.
      depth: chunks of weights that a warp has under way.
      panel: rounds (a chunk for each slice) of x that are copied together; divides ``depth``.
      stages: panels of x that are held.
    """

    cluster: int
    tiles: int
    per_warp: int
    slices: int
    depth: int
    panel: int
    stages: int


class Plan(NamedTuple):
    """A chunk: how much k it spans, and the loads of a lane."""

    n: int
    m: int
    chunk: int  # k of a chunk
    units: int  # parts of 8m k; 0 for 2:4
    loads: int  # 16-byte loads of values
    metas: tuple[int, ...]  # words of each load of metadata: of a lane for 2:4, else of a quad

    @property
    def native(self) -> bool:
        """Whether the hardware's own 2:4 is stored."""
        return self.units == 0

    @property
    def steps(self) -> int:
        """Instructions of 32 k in a chunk."""
        return self.chunk // STEP

    @property
    def readers(self) -> int:
        """Different words that a warp reads with one word of a load of metadata."""
        return 32 if self.native else 8

    @property
    def meta_words(self) -> int:
        """Words of metadata in a chunk of a tile."""
        return sum(self.metas) * self.readers

    @property
    def registers(self) -> int:
        """Words that a lane holds of one chunk."""
        return 4 * self.loads + sum(self.metas)


def plan(n: int, m: int) -> Plan:
    """Return the plan of a pattern: 2:4, or n of 4, 8 or 16 with n at most m / 2."""
    if (n, m) == (2, 4):
        return Plan(2, 4, 128, 0, 4, (2,))
    units = 4 if n <= 2 else 2  # so that a chunk is one to five KiB of weights
    words = units * n  # pairs of groups a lane and row: two words of values, one of metadata
    extra = {4: 0, 8: (words + 1) // 2, 16: words}[m]
    return Plan(n, m, units * 8 * m, units, words // 2, _widths(words + extra))


def _widths(words: int) -> tuple[int, ...]:
    """Split a number of words into loads of four, two and one."""
    rest = {0: (), 1: (1,), 2: (2,), 3: (2, 1)}[words % 4]
    return (4,) * (words // 4) + rest


# ------------------------------------------------------------------ packing


def pack(values: jax.Array, positions: jax.Array, *, m: int) -> Packed:
    """Arrange the kept weights of each group for the lanes.

    Args:
      values: [N, G, n] bfloat16 or float16.
      positions: [N, G, n] integers below m, rising strictly within a group.
      m: consecutive k of a group.

    Returns:
      The packed arrays.
    """
    n = values.shape[-1]
    p = plan(n, m)
    values, positions = _whole(values, p), _whole(positions.astype(jnp.uint32), p)
    if values.shape[1] > 0:
        positions = _legal(positions)
    bits = lax.bitcast_convert_type(values, jnp.uint16).astype(jnp.uint32)
    words, meta = (_pack_native if p.native else _pack_planes)(bits, positions, p)
    halves = lax.bitcast_convert_type(words, jnp.uint16)  # low half first
    stored = lax.bitcast_convert_type(halves.reshape(*words.shape[:2], -1), values.dtype)
    return Packed(stored, lax.bitcast_convert_type(meta, jnp.int32))


def unpack(packed: Packed, *, n: int, m: int, k: int, n_out: int) -> tuple[jax.Array, jax.Array]:
    """Return the ``values`` and ``positions`` (uint8) that `pack` was given."""
    p = plan(n, m)
    tiles, chunks = packed.values.shape[:2]
    halves = lax.bitcast_convert_type(packed.values, jnp.uint16)
    words = lax.bitcast_convert_type(halves.reshape(tiles, chunks, -1, 2), jnp.uint32)
    meta = lax.bitcast_convert_type(packed.meta, jnp.uint32)
    bits, positions = (_unpack_native if p.native else _unpack_planes)(words, meta, p)
    values = lax.bitcast_convert_type(bits.astype(jnp.uint16), packed.values.dtype)
    groups = k // m
    return values[:n_out, :groups], positions.astype(jnp.uint8)[:n_out, :groups]


def _whole(x: jax.Array, p: Plan) -> jax.Array:
    """Add zeros up to whole tiles and chunks."""
    rows, groups = -x.shape[0] % TILE, -x.shape[1] % (p.chunk // p.m)
    return jnp.pad(x, ((0, rows), (0, groups), (0, 0)))


def _legal(positions: jax.Array) -> jax.Array:
    """Give the groups of the padding rising positions."""
    n = positions.shape[-1]
    rising = lax.broadcasted_iota(jnp.uint32, positions.shape, 2)
    return jnp.where(positions[..., -1:] < np.uint32(n - 1), rising, positions)


# Axes of 2:4: tile, half of the tile, g, chunk, step, half of the step, c, place.
_NATIVE = (0, 3, 4, 2, 6, 5, 1, 7)
# And of its metadata: tile, half, g, chunk, step // 2, step % 2, lane % 2, group; the sum over the
# half and the group is a word.
_NATIVE_META = (0, 3, 2, 5, 6, 4, 1, 7)
_NATIVE_SHIFT = (16 * np.arange(2)[:, None] + 4 * np.arange(4)).astype(np.uint32)


def _back(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort(order))


def _pack_native(bits: jax.Array, positions: jax.Array, p: Plan) -> tuple[jax.Array, jax.Array]:
    tiles, chunks = bits.shape[0] // TILE, bits.shape[1] // 32
    halves = bits.reshape(tiles, 2, 8, chunks, 4, 2, 4, 2).transpose(_NATIVE)
    words = halves[..., 0] | (halves[..., 1] << 16)
    nibbles = positions[..., 0] | (positions[..., 1] << 2)
    nibbles = nibbles.reshape(tiles, 2, 8, chunks, 2, 2, 2, 4).transpose(_NATIVE_META)
    meta = jnp.sum(nibbles << _wide(_NATIVE_SHIFT, 8), (-1, -2), dtype=jnp.uint32)
    return words.reshape(tiles, chunks, -1), meta.reshape(tiles, chunks, p.meta_words)


def _unpack_native(words: jax.Array, meta: jax.Array, p: Plan) -> tuple[jax.Array, jax.Array]:
    tiles, chunks = words.shape[:2]
    rows, groups = tiles * TILE, chunks * 32
    halves = jnp.stack([words & 0xFFFF, words >> 16], -1).reshape(tiles, chunks, 4, 8, 4, 2, 2, 2)
    bits = halves.transpose(_back(_NATIVE)).reshape(rows, groups, 2)
    meta = meta.reshape(tiles, chunks, 8, 2, 2, 2, 1, 1) >> _wide(_NATIVE_SHIFT, 8)
    nibbles = (meta & 15).transpose(_back(_NATIVE_META)).reshape(rows, groups)
    return bits, jnp.stack([nibbles & 3, nibbles >> 2], -1)


def _wide(table: np.ndarray, rank: int) -> jax.Array:
    """Give a table leading axes of 1, for strict rank promotion."""
    return jnp.asarray(table.reshape((1,) * (rank - table.ndim) + table.shape))


# Axes of planes: tile, half, g, chunk, unit, three bits of the group's number in its unit, plane.
# Word c of a quad holds groups G = 2c and H = 2c + 1 of an order in which lane c multiplies groups
# c and c + 4. Groups of 4 take another order, so that a lane finds its x in 16 adjacent bytes.
_PLANES = {4: (0, 3, 2, 7, 5, 4, 8, 1, 6), 8: (0, 3, 2, 5, 6, 4, 8, 1, 7)}


def _order(p: Plan) -> tuple[int, ...]:
    return _PLANES[min(p.m, 8)]


def _pack_planes(bits: jax.Array, positions: jax.Array, p: Plan) -> tuple[jax.Array, jax.Array]:
    bits, positions = _by_lane(bits, p), _by_lane(positions, p)
    tiles, chunks = bits.shape[:2]
    words = bits[..., 0] | (bits[..., 1] << 16)  # tile, chunk, g, c, unit, plane, half of the tile
    words = words.reshape(tiles, chunks, 32, p.loads, 4).swapaxes(2, 3)
    meta = jnp.concatenate([_first(positions), *_others(positions, p)], -1)
    starts = np.cumsum((0, *p.metas))
    pieces = [meta[..., a:b] for a, b in itertools.pairwise(starts)]
    meta = jnp.concatenate([x.reshape(tiles, chunks, -1) for x in pieces], -1)
    return words.reshape(tiles, chunks, -1), meta


def _unpack_planes(words: jax.Array, meta: jax.Array, p: Plan) -> tuple[jax.Array, jax.Array]:
    tiles, chunks = words.shape[:2]
    words = words.reshape(tiles, chunks, p.loads, 32, 4).swapaxes(2, 3)
    words = words.reshape(tiles, chunks, 8, 4, p.units, p.n, 2)
    bits = jnp.stack([words & 0xFFFF, words >> 16], -1)
    starts = np.cumsum((0, *p.metas)) * 8
    pieces = [meta[..., a:b] for a, b in itertools.pairwise(starts)]
    meta = jnp.concatenate([x.reshape(tiles, chunks, 8, -1) for x in pieces], -1)
    positions = _positions(meta, p)
    return _by_row(bits, p), _by_row(positions, p)


def _by_lane(x: jax.Array, p: Plan) -> jax.Array:
    """Return [tile, chunk, g, c, unit, plane, half of the tile, G or H] of [N, G, n]."""
    tiles, chunks = x.shape[0] // TILE, x.shape[1] // (8 * p.units)
    x = x.reshape(tiles, 2, 8, chunks, p.units, 2, 2, 2, p.n).transpose(_order(p))
    return x.reshape(tiles, chunks, 8, 4, p.units, p.n, 2, 2)


def _by_row(x: jax.Array, p: Plan) -> jax.Array:
    """Undo `_by_lane`."""
    tiles, chunks = x.shape[:2]
    x = x.reshape(tiles, chunks, 8, 2, 2, p.units, p.n, 2, 2).transpose(_back(_order(p)))
    return x.reshape(tiles * TILE, chunks * 8 * p.units, p.n)


_C, _HALF, _GH = (np.arange(k).reshape(s) for k, s in ((4, (4, 1, 1)), (2, (2, 1)), (2, (2,))))
_ODD = 8 * (2 * _HALF + _GH) + 7 - 2 * _C  # bits that a shift by 2c brings to the top of a byte
_LOW = 16 * _HALF + 4 * _C + 2 * _GH  # the metadata of the hardware, at even bits


def _spread(positions: jax.Array, bit: int, places: np.ndarray) -> jax.Array:
    """Put one bit of the positions at its places; [tile, chunk, g, unit * plane] words."""
    bits = jnp.moveaxis((positions >> bit) & 1, 3, -3)  # tile, chunk, g, unit, plane, c, half, G/H
    words = jnp.sum(bits << _wide(places.astype(np.uint32), 8), (-1, -2, -3), dtype=jnp.uint32)
    return words.reshape(*words.shape[:3], -1)


def _first(positions: jax.Array) -> jax.Array:
    return _spread(positions, 0, _LOW) | _spread(positions, 1, _ODD)


def _others(positions: jax.Array, p: Plan) -> list[jax.Array]:
    """Return the words of the bits beyond the second."""
    if p.m == 16:
        return [_spread(positions, 2, _ODD) | _spread(positions, 3, _ODD - 1)]
    if p.m == 8:
        odd, even = _spread(positions, 2, _ODD), _spread(positions, 2, _ODD - 1)
        even = jnp.pad(even, ((0, 0),) * 3 + ((0, even.shape[-1] % 2),))
        return [odd[..., 0::2] | even[..., 1::2]]  # two words share one
    return []


def _gather(words: jax.Array, bit: int, places: np.ndarray, p: Plan) -> jax.Array:
    """Undo `_spread`."""
    words = words.reshape(*words.shape[:3], p.units, p.n, 1, 1, 1)
    bits = (words >> _wide(places.astype(np.uint32), 8)) & 1
    return jnp.moveaxis(bits, -3, 3) << bit


def _positions(meta: jax.Array, p: Plan) -> jax.Array:
    """Read the positions from [tile, chunk, g, word] metadata."""
    number = p.units * p.n
    first, rest = meta[..., :number], meta[..., number:]
    found = _gather(first, 0, _LOW, p) | _gather(first, 1, _ODD, p)
    if p.m == 16:
        found = found | _gather(rest, 2, _ODD, p) | _gather(rest, 3, _ODD - 1, p)
    if p.m == 8:
        twice = jnp.stack([rest, rest << 1], -1).reshape(*rest.shape[:3], -1)[..., :number]
        found = found | _gather(twice, 2, _ODD, p)
    return found


# ------------------------------------------------------------------ lanes
# Integers here are Python's, numpy's or the kernel's `Word`.


def x_offset(p: Plan, lane: Any) -> Any:
    """Return the byte, in a row of x, at which a lane begins to load a step or a unit."""
    if p.native:
        return (lane >> 3) * 16  # one row of four 8 x 8 matrices
    return (lane & 3) * (32 if p.m == 16 else 16)


def x_loads(p: Plan) -> tuple[int, ...]:
    """Return the bytes beyond `x_offset` of the 16-byte loads of a unit (of a step for 2:4)."""
    return {4: (0,), 8: (0, 64), 16: (0, 16, 128, 144)}[p.m]


def x_stride(p: Plan, size: int) -> int:
    """Return the bytes between rows of x in shared memory, so that lanes meet in no bank."""
    return size + (64 if not p.native and p.m <= 8 else 16)


def x_fragment(p: Plan, loaded: list[list[Any]], step: int) -> list[Any]:
    """Return the four words that a lane multiplies in a step of a unit."""
    if p.native:
        return loaded[0]
    if p.m == 4:
        a, b, c, d = loaded[0]
        return [a, c, b, d]
    words = list(itertools.chain(*loaded))
    first, second = words[: len(words) // 2], words[len(words) // 2 :]
    at = 2 * step
    return [first[at], second[at], first[at + 1], second[at + 1]]


def native_operands(values: list[Any], meta: list[Any], step: int) -> tuple[list[Any], Any, int]:
    """Return the weights, the metadata and whose metadata count, of a step of 2:4."""
    return values[4 * step : 4 * step + 4], meta[step // 2], step % 2


def plane_operands(
    p: Plan, values: list[Any], meta: list[Any], word: int, c: Any, sign: Any
) -> tuple[list[list[Any]], Any]:
    """Return the weights of each step of a unit, and their metadata, for one plane.

    Args:
      p: the plan.
      values: the lane's words of a chunk.
      meta: its metadata.
      word: unit * n + plane.
      c: the lane's place in its quad.
      sign: replicates the signs of the bytes of a word: ``sign(word, half of the tile)``.
    """
    first = meta[word]
    shifted = [first << (c * 2)]
    rest = p.units * p.n
    if p.m == 8:
        shifted.append(meta[rest + word // 2] << (c * 2 + word % 2))
    if p.m == 16:
        shifted += [meta[rest + word] << (c * 2 + bit) for bit in range(2)]
    masks = [[sign(s, half) for half in range(2)] for s in shifted]
    steps = [
        [
            _selected(values[2 * word + half], [m[half] for m in masks], 2 * step + odd)
            for odd in range(2)
            for half in range(2)
        ]
        for step in range(p.m // 4)
    ]
    return steps, (first & 0x55555555) | 0x88888888


def _selected(value: Any, masks: list[Any], wanted: int) -> Any:
    """Clear the halves of a word whose position's high bits are not ``wanted``."""
    for bit, mask in enumerate(masks):
        value = value & (mask if (wanted >> bit) & 1 else ~mask)
    return value
