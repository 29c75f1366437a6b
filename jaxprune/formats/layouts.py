"""How the values and positions of N:M weights lie in memory."""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np


class Layout(Protocol):
    """A way to store N:M weights: an object that can be hashed, with two functions.

    Groups run along the contracted axis: ``values`` is ``[out, groups, n]``, the kept weights of
    each group in rising position, and ``positions``, uint8 of the same shape, says where in the
    group they stand.
    """

    def pack(self, values: jax.Array, positions: jax.Array, *, m: int) -> Any:
        """Return a NamedTuple of arrays, for one matrix."""
        ...

    def unpack(self, packed: Any, *, n: int, m: int, k: int, n_out: int) -> Any:
        """Return ``values`` and ``positions`` of a matrix of ``k`` inputs and ``n_out`` outputs."""
        ...


class Plain(NamedTuple):
    """Values in order, positions as bits.

    Attributes:
      values: [..., out, groups, n].
      indices: uint8 [..., out, ceil(groups * n / entries)]: 1, 2 or 4 bits a position (m up to 2,
        4, 16), the first in the lowest bits.
    """

    values: Any
    indices: Any


def bits_of(m: int) -> int:
    """Return the bits that a position in a group of m takes: a divisor of 8."""
    return 1 if m <= 2 else 2 if m <= 4 else 4


@dataclasses.dataclass(frozen=True)
class PlainLayout:
    """Values in order, positions as 1, 2 or 4 bits; it serves all platforms."""

    def pack(self, values: jax.Array, positions: jax.Array, *, m: int) -> Plain:
        """Return values and packed positions, of any number of leading axes."""
        bits = bits_of(m)
        entries = 8 // bits
        flat = positions.reshape(*positions.shape[:-2], -1)
        short = -flat.shape[-1] % entries
        if short:
            flat = jnp.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, short)])
        cells = flat.reshape(*flat.shape[:-1], -1, entries)
        word = jnp.zeros(cells.shape[:-1], jnp.uint8)
        for i in range(entries):
            word = word | (cells[..., i] << np.uint8(i * bits))
        return Plain(values, word)

    def unpack(self, packed: Any, *, n: int, m: int, k: int, n_out: int) -> Any:
        """Return values and positions, of any number of leading axes."""
        del n, k, n_out
        values, word = packed
        bits = bits_of(m)
        mask = np.uint8(2**bits - 1)
        cells = [(word >> np.uint8(i * bits)) & mask for i in range(8 // bits)]
        flat = jnp.stack(cells, axis=-1).reshape(*word.shape[:-1], -1)
        count = values.shape[-1] * values.shape[-2]
        flat = flat if flat.shape[-1] == count else flat[..., :count]
        return values, flat.reshape(values.shape)


PLAIN = PlainLayout()
"""The layout of `NMSparse` unless another is asked for."""
