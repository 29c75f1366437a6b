"""The gradient of a block-sparse weight on a TPU: only the stored blocks are computed.

Pallas Mosaic TPU. A grid step multiplies the rows of one block row's inputs and one block column's
gradients, as many rows as fit into fast memory. Stored blocks are sorted by column, so that the
gradients of a column are read once for all its blocks where all rows fit.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxprune.kernels._tpu import FAST_LIMIT, SUBLANES, pltpu, result

_FAST_BYTES = 32 << 20  # what the operands may take of fast memory
_SPARE = 4 << 20  # what the compiler takes


class Config(NamedTuple):
    """How the sum over rows is cut.

    Attributes:
      rows: rows that are held at a time, a multiple of ``chunk``.
      chunk: rows that are multiplied at a time.
    """

    rows: int
    chunk: int


def configs(rows: int, dtype: Any, block: tuple[int, int]) -> list[Config]:
    """Return what is worth trying, the default first.

    Args:
      rows: rows of both operands.
      dtype: their type.
      block: height and width of a block.
    """
    first = default(rows, dtype, block)
    chunks = [chunk for chunk in (256, 512, 1024) if first.rows % chunk == 0]
    return [first, *(Config(first.rows, chunk) for chunk in chunks if chunk != first.chunk)]


def default(rows: int, dtype: Any, block: tuple[int, int]) -> Config:
    """Return tiles of all rows, or of as many as fit into fast memory.

    Args:
      rows: rows of both operands.
      dtype: their type.
      block: height and width of a block.
    """
    narrow = block[0] * block[1] < 256 * 256  # a product of few columns takes time to begin
    most = most_rows(dtype, block)
    chunk = min(1024 if narrow else 512, most, -(-rows // SUBLANES) * SUBLANES)
    whole = pl.cdiv(rows, chunk)
    parts = pl.cdiv(whole, most // chunk)
    return Config(chunk * pl.cdiv(whole, parts), chunk)


def most_rows(dtype: Any, block: tuple[int, int]) -> int:
    """Return how many rows of both operands fast memory holds beside a block; 0 if it does not.

    Args:
      dtype: their type.
      block: height and width of a block.
    """
    size = jnp.dtype(dtype).itemsize
    sums = block[0] * block[1] * (4 + 2 * size)  # in float32, and what is written, twice
    room = min(_FAST_BYTES, FAST_LIMIT - _SPARE - sums)
    return max(room // (2 * sum(block) * size) // SUBLANES * SUBLANES, 0)


def weight_gradient(
    x: jax.Array,
    dy: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    *,
    block: tuple[int, int],
    count: Any = None,
    config: Config | None = None,
    interpret: Any = False,
) -> jax.Array:
    """Multiply the transpose of x by dy, at the stored blocks.

    Args:
      x: (rows, K) float32 or bfloat16.
      dy: (rows, N) of the same type.
      rows: (S,) int32 block rows.
      columns: (S,) int32 block columns, rising.
      block: height and width of a block.
      count: slots that hold blocks, scalar; the others are zero. None computes all.
      config: how the sum over rows is cut; `default` by default.
      interpret: run on any device: True, or Pallas' ``InterpretParams`` for TPUs.

    Returns:
      (S, bk, bn) of the type of ``x``; sums are in float32.
    """
    height, chunk = config or default(x.shape[0], x.dtype, block)
    # What lies beyond the last row is not zero, so the sum may not include it.
    x, dy = (jnp.pad(a, ((0, -a.shape[0] % height), (0, 0))) for a in (x, dy))
    slots = rows.shape[0]
    live = jnp.asarray(slots if count is None else count, jnp.int32).reshape(1)
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=3,
        grid=(slots, x.shape[0] // height),
        in_specs=[
            pl.BlockSpec((height, block[0]), lambda s, i, live, rows, columns: (i, rows[s])),
            pl.BlockSpec((height, block[1]), lambda s, i, live, rows, columns: (i, columns[s])),
        ],
        out_specs=pl.BlockSpec((1, *block), lambda s, *_: (s, 0, 0)),
        scratch_shapes=[pltpu.VMEM(block, jnp.float32)],
    )

    return pl.pallas_call(
        functools.partial(_kernel, chunk=chunk),
        grid_spec=grid_spec,
        out_shape=result((slots, *block), x.dtype, x, dy, live, rows, columns),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=FAST_LIMIT
        ),
        cost_estimate=_cost(x, slots, block),
        interpret=interpret,
        name="block_sparse_gradient",
    )(live, rows, columns, x, dy)


def _kernel(
    live: Any, rows: Any, columns: Any, x: Any, dy: Any, out: Any, total: Any, *, chunk: int
) -> None:
    """Add the product of the rows at hand to the block's sum."""
    del rows, columns  # used where the operands are copied from
    slot, part = pl.program_id(0), pl.program_id(1)

    @pl.when(part == 0)
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    @pl.loop(0, jnp.where(slot < live[0], x.shape[0] // chunk, 0))
    def _(place: jax.Array) -> None:
        rows = pl.ds(pl.multiple_of(place * chunk, SUBLANES), chunk)
        axes = (((0,), (0,)), ((), ()))
        total[...] += lax.dot_general(
            x[rows, :], dy[rows, :], axes, preferred_element_type=jnp.float32
        )

    @pl.when(part == pl.num_programs(1) - 1)
    def _() -> None:
        out[0] = total[...].astype(out.dtype)


def _cost(x: jax.Array, slots: int, block: tuple[int, int]) -> pl.CostEstimate:
    rows, width = x.shape[0], x.dtype.itemsize
    entries = block[0] * block[1]
    return pl.CostEstimate(
        flops=2 * rows * slots * entries,
        transcendentals=0,
        bytes_accessed=slots * (rows * sum(block) + entries) * width,
    )
