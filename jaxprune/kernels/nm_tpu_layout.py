"""How N:M weights lie in a TPU's memory: whole vector registers are moved, nothing is shuffled.

A vector register of a TPU holds 8 rows of 128 lanes, and moving data between its rows is slow. So
the members of a group must not be neighbours: the contracted axis is stored permuted. The kept
values are ``n`` planes of one row per group; where they go is a code of a few bits per group, and
a 32-bit word holds the codes of groups that lie a multiple of 16 rows apart. `pack` permutes, the
product permutes its other operand alike: users' groups stay consecutive.

The code is the shorter of two: one bit per member, set where a value is kept, or the values'
positions. 2:4 takes 4 bits a group, 1:4 takes 2, 2:8 and 4:8 take 8, 1:16 takes 4.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.kernels._tpu import LANES, SUBLANES


class Packed(NamedTuple):
    """N:M weights in the order of the TPU's kernel.

    Attributes:
      values: (n, groups, columns), padded with zeros to whole tiles.
      words: (groups / groups per word, columns) int32, the codes.
    """

    values: jax.Array
    words: jax.Array


class Code(NamedTuple):
    """How the places of a group's values are written.

    Attributes:
      by_member: one bit per member of the group; else the positions one after the other.
      bits: bits of a group's code, a power of two.
    """

    by_member: bool
    bits: int

    @property
    def per_word(self) -> int:
        """Groups whose codes a word holds."""
        return 32 // self.bits


def code(n: int, m: int) -> Code:
    """Return the shorter code of an N:M pattern; of one bit per member if they are as long."""
    positions, members = _power_of_two(n * position_bits(m)), _power_of_two(m)
    return Code(True, members) if members <= positions else Code(False, positions)


def position_bits(m: int) -> int:
    """Return how many bits a position within a group takes."""
    return max(math.ceil(math.log2(m)), 1)


def tile(groups: int, n: int, m: int) -> int:
    """Return how many groups a tile has: the most whose padding adds little to ``groups``.

    Its words are whole registers, its groups whole lanes.
    """
    least = max(LANES, SUBLANES * code(n, m).per_word)
    sizes = [size for size in (512, 256, 128) if size > least]
    return next((size for size in sizes if -groups % size * 16 <= groups), least)


def pack(values: jax.Array, positions: jax.Array, *, m: int) -> Packed:
    """Bring N:M weights into the order of the kernel.

    Args:
      values: (n_out, groups, n), the kept values of each group of ``m`` consecutive members of the
        contracted axis.
      positions: (n_out, groups, n) uint8, their places in the group, strictly rising.
      m: members of a group.
    """
    n_out, groups, n = values.shape
    each, size = code(n, m), tile(groups, n, m)
    pad = ((0, 0), (0, -groups % size), (0, -n_out % LANES))
    planes = jnp.pad(jnp.transpose(values, (2, 1, 0)), pad)
    codes = jnp.pad(_codes(jnp.transpose(positions, (2, 1, 0)), m, each)[None], pad)[0]
    split = codes.reshape(-1, each.per_word, size // each.per_word, codes.shape[-1])
    shifts = lax.broadcasted_iota(jnp.uint32, (1, each.per_word, 1, 1), 1) * each.bits
    # The codes do not overlap, so that their sum joins them.
    words = jnp.sum(split << shifts, axis=1, dtype=jnp.uint32)
    words = lax.bitcast_convert_type(words, jnp.int32).reshape(-1, codes.shape[-1])
    return Packed(planes, words)


def unpack(packed: Packed, *, n: int, m: int, k: int, n_out: int) -> tuple[jax.Array, jax.Array]:
    """Return the values and positions that `pack` was given.

    Args:
      packed: weights in the order of the kernel.
      n: kept members of a group.
      m: members of a group.
      k: length of the contracted axis.
      n_out: columns of the weight.
    """
    groups = k // m
    each, size = code(n, m), tile(groups, n, m)
    words = lax.bitcast_convert_type(packed.words, jnp.uint32)
    split = words.reshape(-1, 1, size // each.per_word, words.shape[-1])
    shifts = lax.broadcasted_iota(jnp.uint32, (1, each.per_word, 1, 1), 1) * each.bits
    codes = (split >> shifts).reshape(-1, words.shape[-1])[:groups, :n_out]
    positions = _positions(codes, n, m, each)
    values = packed.values[:, :groups, :n_out]
    return jnp.transpose(values, (2, 1, 0)), jnp.transpose(positions, (2, 1, 0))


def permuted(x: jax.Array, m: int, groups: int) -> jax.Array:
    """Return (m, rows, groups): the members of all groups, padded with zeros to ``groups``.

    Args:
      x: (rows, k), the operand of which the weight's contracted axis is contracted.
      m: members of a group.
      groups: of the packed weight.
    """
    if m < 8:  # the faster way, as the compiler estimates them
        split = jnp.stack([x[:, member::m] for member in range(m)])
    else:
        split = jnp.transpose(x.reshape(x.shape[0], -1, m), (2, 0, 1))
    return jnp.pad(split, ((0, 0), (0, 0), (0, groups - split.shape[-1])))


def _codes(positions: jax.Array, m: int, each: Code) -> jax.Array:
    """Return (groups, columns) uint32 of (n, groups, columns) positions."""
    place = positions.astype(jnp.uint32)
    if each.by_member:
        return jnp.sum(jnp.uint32(1) << place, axis=0, dtype=jnp.uint32)
    index = lax.broadcasted_iota(jnp.uint32, (place.shape[0], 1, 1), 0)
    return jnp.sum(place << (index * position_bits(m)), axis=0, dtype=jnp.uint32)


def _positions(codes: jax.Array, n: int, m: int, each: Code) -> jax.Array:
    """Return (n, groups, columns) uint8 positions of (groups, columns) codes."""
    if not each.by_member:
        index = lax.broadcasted_iota(jnp.uint32, (n, 1, 1), 0)
        mask = jnp.uint32((1 << position_bits(m)) - 1)
        return ((codes[None] >> (index * position_bits(m))) & mask).astype(jnp.uint8)
    member = lax.broadcasted_iota(jnp.uint32, (m, 1, 1), 0)
    kept = ((codes[None] >> member) & jnp.uint32(1)) == 1
    rank = jnp.cumsum(kept, axis=0, dtype=jnp.int32)  # of a kept member, from 1
    place = lax.broadcasted_iota(jnp.int32, kept.shape, 0)
    found = [jnp.sum(jnp.where(kept & (rank == i + 1), place, 0), axis=0) for i in range(n)]
    return jnp.stack(found).astype(jnp.uint8)


def _power_of_two(bits: int) -> int:
    return 1 << (bits - 1).bit_length()
