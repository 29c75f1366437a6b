"""How 2:4 weights lie in memory for the sparse tensor cores, and how a product of them is cut."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BLOCK = 128  # outputs of a block's tile: 64 for each of two warpgroups
DEPTH = 64  # dense k of a step


class Packed(NamedTuple):
    """2:4 weights as the sparse tensor cores read them, N and K rounded up to multiples of 64.

    ``values [N, K / 2]`` of the weights' type, ``meta [N / 64, 2 K] int32``: the words of the
    metadata of 64 x 64 weights, two for each pair of lanes that reads them.
    """

    values: jax.Array
    meta: jax.Array


class Config(NamedTuple):
    """How the work is split.

    Attributes:
      rows: rows of x in a tile: 32, 64, 128 or 256.
      stages: steps of k in shared memory.
      cluster: blocks that share the rows of x, 1 or 2.
      width: tiles of outputs that are walked together, so that they meet in the cache.
      splits: parts of k, of which each has blocks of its own and whose sums are added at the end;
        the largest number that divides this one and the steps of k is taken.
    """

    rows: int = 256
    stages: int = 4
    cluster: int = 2
    width: int = 8
    splits: int = 1


def pack(values: jax.Array, positions: jax.Array, *, m: int) -> Packed:
    """Arrange 2:4 weights for the sparse tensor cores.

    Args:
      values: [N, K / 4, 2] bfloat16 or float16, the kept weights of each group.
      positions: [N, K / 4, 2] integers below 4, rising strictly within a group.
      m: 4.

    Returns:
      The packed arrays.
    """
    assert m == 4, m
    rows = max(-values.shape[0] % 64, BLOCK - values.shape[0])
    padding = ((0, rows), (0, -values.shape[1] % 16), (0, 0))
    positions = positions.astype(jnp.uint32)
    nibbles = positions[..., 0] | (positions[..., 1] << 2)
    nibbles = jnp.pad(nibbles, padding[:2], constant_values=np.uint32(4))  # places 0 and 1
    values = jnp.pad(values, padding)
    n_out, groups = nibbles.shape
    nibbles = nibbles.reshape(n_out // 64, 4, 2, 8, groups // 16, 2, 2, 4).transpose(_META)
    meta = jnp.sum(nibbles << _shift(), (-1, -2), dtype=jnp.uint32)
    meta = lax.bitcast_convert_type(meta.reshape(n_out // 64, groups * 8), jnp.int32)
    return Packed(values.reshape(n_out, groups * 2), meta)


def unpack(packed: Packed, *, n: int, m: int, k: int, n_out: int) -> tuple[jax.Array, jax.Array]:
    """Return the ``values`` and ``positions`` (uint8) that `pack` was given."""
    assert (n, m) == (2, 4), (n, m)
    rows, groups = packed.values.shape[0], packed.values.shape[1] // 2
    values = packed.values.reshape(rows, groups, 2)
    meta = lax.bitcast_convert_type(packed.meta, jnp.uint32)
    meta = meta.reshape(rows // 64, groups // 16, 4, 8, 2, 2, 1, 1)
    back = tuple(int(i) for i in np.argsort(_META))
    nibbles = ((meta >> _shift()) & 15).transpose(back).reshape(rows, groups)
    positions = jnp.stack([nibbles & 3, nibbles >> 2], -1).astype(jnp.uint8)
    return values[:n_out, : k // m], positions[:n_out, : k // m]


# Axes of the metadata: 64 outputs, warp, half of its rows, row, step of 64 k, step of 32, lane % 2,
# group. A word holds four groups of a row and of the row 8 further.
_META = (0, 4, 1, 3, 6, 5, 2, 7)


def _shift() -> jax.Array:
    table = 16 * np.arange(2)[:, None] + 4 * np.arange(4)
    return jnp.asarray(table.astype(np.uint32).reshape(1, 1, 1, 1, 1, 1, 2, 4))
