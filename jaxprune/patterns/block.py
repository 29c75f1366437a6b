"""Zeros in tiles."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._core.select import top_k_mask
from jaxprune.patterns import _common


@dataclasses.dataclass(frozen=True, repr=False)
class Block:
    """Prune whole blocks.

    Blocks tile the last ``len(shape)`` axes; each position of the other axes has blocks of its
    own. A block's score is the **mean** of its members' scores (with sums, the short blocks at a
    padded edge would lose against equals). ``round(density · blocks)`` blocks of a layer are kept
    (half to even), and at least one; ties go to the lower index.

    Args:
      shape: the size of a block along the last axes.
      pad: accept lengths that are not multiples of the block's. Blocks at the edge are then
        smaller.

    Raises:
      ValueError: an empty shape, or a size below 1.
      TypeError: a size that is not an integer.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import patterns
      >>> scores = jnp.array([[1.0, 1.0, 5.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
      >>> patterns.Block((2, 2)).mask(scores, 1)
      Array([[False, False,  True,  True],
             [False, False,  True,  True]], dtype=bool)

    Reference:
      Gray, Radford and Kingma, GPU kernels for block-sparse weights, OpenAI, 2017.
    """

    shape: tuple[int, ...]
    pad: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        given: Any = self.shape
        if not isinstance(given, tuple | list) or not given:
            raise ValueError(
                f"Block: shape must be a tuple of one size or more, got {given!r}. "
                "Block((16, 16)) tiles the last two axes."
            )
        meaning = "the length of a block along one of the last axes"
        sizes = tuple(_common.as_int("Block", "shape", size, meaning) for size in given)
        if min(sizes) < 1:
            raise ValueError(
                f"Block: shape must hold sizes of 1 or more, got {sizes}. "
                "Block((16, 16)) tiles the last two axes."
            )
        object.__setattr__(self, "shape", sizes)

    def __repr__(self) -> str:
        return _common.short_repr(self)

    @property
    def final_sparsity(self) -> None:
        """None: any sparsity will do."""
        return None

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        """Raise if blocks do not fit a parameter's shape.

        Raises:
          ValueError: naming the path, the shape and the remedy.
        """
        if len(self.shape) > len(shape):
            raise _common.misfit(
                self,
                path,
                shape,
                f"a block has {len(self.shape)} axes, the parameter {len(shape)}",
                "Pass a block of fewer axes, or exclude this parameter with where=",
            )
        for axis, size in self._sizes(len(shape)):
            if shape[axis] % size and not self.pad:
                raise _common.misfit(
                    self,
                    path,
                    shape,
                    f"axis {axis} has length {shape[axis]}, not a multiple of {size}",
                    "Pass pad=True, another block, or exclude this parameter with where=",
                )

    def units(self, shape: tuple[int, ...], density: Any) -> Any:
        """Return the number of blocks that are kept at a density."""
        lengths = list(shape)
        for axis, size in self._sizes(len(shape)):
            lengths[axis] = -(-shape[axis] // size)
        return _common.kept_units(math.prod(lengths), density)

    def mask(self, scores: jax.Array, kept: int | jax.Array) -> jax.Array:
        """Return the mask of the ``kept`` best blocks."""
        cells = self._split(scores)
        members = self._members(scores.shape)
        mean = jnp.sum(_wide(cells), self._inner(cells.ndim)) / members.astype(_wide(cells).dtype)
        chosen = jnp.expand_dims(top_k_mask(mean, kept), self._inner(cells.ndim))
        spread = jnp.broadcast_to(chosen, cells.shape)
        return _common.sharded_like(self._join(spread, scores.shape), scores)

    def holds(self, mask: jax.Array) -> jax.Array:
        """Tell whether every block is kept or pruned as a whole."""
        cells = self._split(mask)
        kept = jnp.sum(cells, self._inner(cells.ndim), dtype=jnp.int32)
        return jnp.all((kept == 0) | (kept == self._members(mask.shape)))

    def _sizes(self, rank: int) -> list[tuple[int, int]]:
        """Return ``(axis, size)`` of a block, for an array of that rank."""
        first = rank - len(self.shape)
        return [(first + i, size) for i, size in enumerate(self.shape)]

    def _inner(self, rank: int) -> tuple[int, ...]:
        """Return the axes inside a block of a split array: every second one, from the last."""
        return tuple(range(rank - 1, rank - 2 * len(self.shape), -2))

    def _members(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return how many weights each block holds, shaped to divide the array of block sums."""
        counts = np.ones((1,) * len(shape), np.int32)
        for axis, size in self._sizes(len(shape)):
            starts = np.arange(0, shape[axis], size)
            along = [-1 if a == axis else 1 for a in range(len(shape))]
            counts = counts * np.minimum(size, shape[axis] - starts).reshape(along).astype(np.int32)
        return counts

    def _split(self, x: jax.Array) -> jax.Array:
        """Return ``x`` with every blocked axis cut into ``(blocks, size)``."""
        for axis, size in reversed(self._sizes(x.ndim)):
            x = _common.split(x, axis, size)
        return x

    def _join(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Undo :meth:`_split`."""
        for axis, _ in self._sizes(len(shape)):
            x = _common.join(x, axis, shape[axis])
        return x


def _wide(x: jax.Array) -> jax.Array:
    """Return ``x`` in a type that means can be taken in."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)
