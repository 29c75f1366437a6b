"""``BlockSparse``: whole blocks of weights, those that are all zero left out."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune._core.stacks import over_layers
from jaxprune.formats import _checks, _scales
from jaxprune.formats._compressed import Compressed
from jaxprune.formats._tiles import stored, tiles_of

_OWNER = "BlockSparse"
_ARRAYS = ["data", "rows", "columns", "starts", "by_row", "row_starts", "count", "scale"]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=_ARRAYS, meta_fields=["dense_dtype"]
)
@dataclasses.dataclass(frozen=True, repr=False)
class BlockSparse(Compressed):
    """Matrices ``[..., in, out]`` of blocks, of which the stored ones may hold values.

    A pytree; leading axes stack layers, as in `NMSparse`. Where the blocks stand is data: with
    more slots than blocks, another mask needs no new compilation. Blocks are stored by column, then
    by row; ``by_row`` is the second order, for the transposed product, so that one copy of the
    data serves forward and backward. Slots beyond the last block hold zeros, and stand in row 0 of
    the last column.

    Attributes:
      data: [..., slots, height, width], the blocks.
      rows: int32 [..., slots], the row of blocks in which each stands.
      columns: int32 [..., slots].
      starts: int32 [..., columns of blocks + 1], the first slot of each column; the last is slots.
      by_row: int32 [..., slots], the slots by row, then by column.
      row_starts: int32 [..., rows of blocks + 1], where each row begins in ``by_row``.
      count: int32 [...], how many slots hold blocks.
      scale: as of `NMSparse`.
      dense_dtype: as of `NMSparse`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import formats
      >>> w = jnp.zeros((4, 6)).at[:2, 2:4].set(1.0).at[2:, 4:].set(2.0)
      >>> sparse = formats.BlockSparse.from_dense(w, block=(2, 2), slots=3)
      >>> sparse
      BlockSparse([4, 6], float32, 3 blocks of 2 × 2)
      >>> sparse.rows.tolist(), sparse.columns.tolist(), int(sparse.count)
      ([0, 1, 0], [1, 2, 2], 2)
      >>> bool((sparse.todense() == w).all())
      True
    """

    data: Any
    rows: Any
    columns: Any
    starts: Any
    by_row: Any
    row_starts: Any
    count: Any
    scale: Any = None
    dense_dtype: np.dtype[Any] | None = None

    @classmethod
    def from_dense(
        cls,
        w: Any,
        mask: Any = None,
        *,
        block: tuple[int, int],
        slots: int | None = None,
        path: str | None = None,
    ) -> "BlockSparse":
        """Compress a weight.

        Inside ``jit``, where nothing can be raised, a weight that does not fit becomes NaN as a
        whole; `jaxprune.debug_checks` says so.

        Args:
          w: array ``[..., in, out]`` of floats, its sides multiples of the block's.
          mask: boolean, True = kept, of w's shape; a block is kept or pruned as a whole. None keeps
            the blocks that are not all zero.
          block: height, along ``in``, and width, along ``out``.
          slots: room for blocks of each matrix; as many as the fullest layer keeps by default. It
            must be given inside ``jit``.
          path: the weight's name, for errors.

        Returns:
          The compressed weight.

        Raises:
          ValueError: a block is kept in part, something outside the mask is not zero, slots is too
            small or missing, or a shape does not fit.
          TypeError: w is not of floats.
        """
        height, width = _block(block)
        w, mask = _checks.weight_and_mask(_OWNER, w, mask, path)
        _check_sides(w.shape, (height, width), path)
        live, outside, torn = _live(w, mask, height, width)
        _checks.refuse_outside(_OWNER, outside, w, mask, path)
        _checks.refuse(torn, lambda: _broken(mask, (height, width), path))
        kept = jnp.sum(live, (-1, -2), dtype=jnp.int32)
        slots = _slots(kept, slots, path)
        arrays, over = _compressed(w, live, outside | torn, slots, height, width)
        _checks.refuse(
            over,
            lambda: (
                f"{_OWNER}: slots={slots} is too small for {_checks.called(path)}: it keeps "
                f"{int(kept.max())} blocks. Leave slots out, or pass {int(kept.max())}."
            ),
        )
        data, rows, columns, starts, by_row, row_starts = arrays
        return cls(data, rows, columns, starts, by_row, row_starts, kept)

    @property
    def block(self) -> tuple[int, int]:
        """Height and width of a block."""
        return self.data.shape[-2], self.data.shape[-1]

    @property
    def slots(self) -> int:
        """Room for blocks of each matrix."""
        return self.data.shape[-3]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return self.row_starts.shape[-1] - 1, self.starts.shape[-1] - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, ``(*layers, in, out)``."""
        (high, wide), (height, width) = self.grid, self.block
        return (*self.data.shape[:-3], high * height, wide * width)

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """Dtype of the stored values: the weight's, unless they are quantised."""
        return jnp.dtype(self.data.dtype)

    def live(self) -> jax.Array:
        """Return which slots hold blocks, boolean ``[..., slots]``."""
        place = jnp.arange(self.slots, dtype=jnp.int32)
        return place.reshape((1,) * len(self.count.shape) + (-1,)) < self.count[..., None]

    def todense(self) -> jax.Array:
        """Return the dense weight, bit for bit; quantised values times their scale."""
        return _dense(self)

    def quantize(self, dtype: Any) -> "BlockSparse":
        """Return the weight with values of 8 bits, as `NMSparse.quantize` does.

        Args:
          dtype: ``jnp.int8`` or ``jnp.float8_e4m3fn``.

        Returns:
          A format of the same shape and dtype.

        Raises:
          TypeError: the dtype is another.
          ValueError: values are quantised already, or NaN or inf.

        Example:
          >>> import jax.numpy as jnp
          >>> from jaxprune import formats
          >>> w = formats.BlockSparse.from_dense(jnp.eye(4) * 254.0, block=(2, 2))
          >>> quantized = w.quantize(jnp.int8)
          >>> quantized.data[0].tolist(), quantized.scale.tolist()
          ([[127, 0], [0, 127]], [2.0, 2.0, 2.0, 2.0])
        """
        return _scales.checked(_quantized(self, _scales.target(self, dtype)))

    def astype(self, dtype: Any) -> "BlockSparse":
        """Return the weight in another dtype; quantised values stay as they are."""
        if self.scale is not None:
            return dataclasses.replace(self, dense_dtype=jnp.dtype(dtype))
        return dataclasses.replace(self, data=self.data.astype(dtype))

    def __repr__(self) -> str:
        height, width = self.block
        return _checks.show(self, f"{self.slots} blocks of {height} × {width}", *_scales.told(self))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _live(
    w: jax.Array, mask: jax.Array | None, height: int, width: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return which blocks are kept; is something outside the mask, or a block kept in part?"""
    cells = tiles_of(w != 0 if mask is None else mask, height, width)
    live = jnp.any(cells, (-1, -2))
    torn = jnp.asarray(False) if mask is None else jnp.any(live & ~jnp.all(cells, (-1, -2)))
    return live, _checks.outside(w, mask), torn


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _compressed(
    w: jax.Array, live: jax.Array, bad: jax.Array, slots: int, height: int, width: int
) -> tuple[Any, jax.Array]:
    """Return the arrays, and whether there are too few slots."""
    over = jnp.any(jnp.sum(live, (-1, -2), dtype=jnp.int32) > slots)
    build = over_layers(functools.partial(stored, slots=slots), w.ndim - 2)
    data, *index = build(tiles_of(w, height, width), live)
    return (_checks.poisoned(data, bad | over), *index), over


@jax.jit
def _dense(w: BlockSparse) -> jax.Array:
    high, wide = w.grid
    place = jnp.where(w.live(), w.rows * np.int32(wide) + w.columns, high * wide)

    def spread(data: jax.Array, place: jax.Array) -> jax.Array:
        tiles = jnp.zeros((high * wide, *data.shape[1:]), data.dtype)
        return tiles.at[place].set(data, mode="drop")

    tiles = over_layers(spread, w.ndim - 2)(w.data, place)
    tiles = tiles.reshape(*tiles.shape[:-3], high, wide, *w.block)
    dense = jnp.swapaxes(tiles, -2, -3).reshape(w.shape)
    return _scales.applied(dense, w.scale, w.dtype)


@functools.partial(jax.jit, static_argnums=1)
def _quantized(w: BlockSparse, dtype: np.dtype[Any]) -> BlockSparse:
    def one(data: jax.Array, columns: jax.Array) -> tuple[jax.Array, jax.Array]:
        largest = jnp.zeros((w.grid[1], w.block[1]), data.dtype)
        largest = largest.at[columns].max(jnp.max(jnp.abs(data), 1))
        scale = _scales.scale_of(largest, dtype)
        return _scales.rounded(data, scale[columns][:, None], dtype), scale.reshape(-1)

    data, scale = over_layers(one, w.ndim - 2)(w.data, w.columns)
    return dataclasses.replace(w, data=data, scale=scale, dense_dtype=w.dtype)


def _broken(mask: Any, block: tuple[int, int], path: str | None) -> str:
    cells = np.asarray(tiles_of(mask, *block))
    torn = np.asarray(cells.any((-1, -2)) & ~cells.all((-1, -2)))
    count, first = _checks.places(torn)
    size = f"{block[0]} × {block[1]}"
    return (
        f"{_OWNER}: the mask of {_checks.called(path)} keeps {count} blocks of {size} in part, the "
        f"first at {first[-2:]} of the grid of blocks. Make it with "
        f"pattern=jaxprune.Block({block})."
    )


def _block(block: Any) -> tuple[int, int]:
    if not isinstance(block, tuple | list) or len(block) != 2:
        raise ValueError(
            f"{_OWNER}: block must be two sizes, the height along the inputs and the width along "
            f"the outputs, got {block!r}."
        )
    height, width = (_checks.as_size(_OWNER, "block", size, 1) for size in block)
    return height, width


def _check_sides(shape: tuple[int, ...], block: tuple[int, int], path: str | None) -> None:
    for axis, size in zip((-2, -1), block, strict=True):
        length = shape[axis]
        if length % size:
            raise ValueError(
                f"{_OWNER}: axis {axis} of {_checks.called(path)} of shape {shape} has length "
                f"{length}, which must be a multiple of {size}, the block's side. Pad it with "
                f"zeros to {length + -length % size}, or choose another block."
            )


def _slots(kept: jax.Array, slots: int | None, path: str | None) -> int:
    if slots is not None:
        return _checks.as_size(_OWNER, "slots", slots, 1)
    if isinstance(kept, Tracer):
        raise ValueError(
            f"{_OWNER}: how many blocks {_checks.called(path)} keeps is not known inside jit. "
            "Pass slots=, the room for blocks."
        )
    return max(int(kept.max()), 1)
