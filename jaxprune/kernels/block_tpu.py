"""Block-sparse products on a TPU: stored blocks are read and multiplied, empty ones cost nothing.

Pallas Mosaic TPU. The stored blocks of one line (a block column in the forward product, a block
row in the backward one) are taken a few at a time: one grid step multiplies up to `Config.blocks`
of them into a float32 sum, which the line's last step writes, while the next step's blocks are
copied to fast memory. What the steps are is computed from the structure (`block_tpu_steps`) and
handed to the kernel in scalar memory, so that masks may change without a new compilation. Every
line has a step, so empty lines give zeros.

The rows of the dense operand are cut into tiles, each held in fast memory with all its columns
while the stored blocks pass by. `block_tpu_gradient` has the product at the stored blocks.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.kernels import _slots
from jaxprune.kernels._tpu import LANES, refusal
from jaxprune.kernels.block_tpu_gradient import most_rows, weight_gradient
from jaxprune.kernels.block_tpu_kernel import Config, product
from jaxprune.kernels.block_tpu_steps import plan

__all__ = [
    "Config",
    "configs",
    "default",
    "forward",
    "input_gradient",
    "supports",
    "weight_gradient",
]

_FAST_BYTES = 40 << 20  # of the 64 MiB that v5p has, the least of v5e, v5p and v6e
_PER_STEP = ((128, 8), (256, 4), (512, 2))  # blocks of up to such sides, and how many pay a step
_SCALARS = 1 << 16  # stored blocks of which the scalar memory holds the places
_HEIGHTS = (1024, 512, 256, 128, 64, 32, 16)


def supports(
    rows: int, k: int, n_out: int, dtype: Any, block: tuple[int, int], *, device_kind: str
) -> str | None:
    """Return why the kernels cannot compute a product, with the remedy, or None if they can.

    Args:
      rows: rows of x; any number.
      k: columns of x.
      n_out: columns of the result.
      dtype: type of x and of the blocks.
      block: height and width of a block.
      device_kind: the device's own name, as ``jax.Device.device_kind`` has it.

    Returns:
      None, or the rest of a sentence.
    """
    reason = refusal(dtype, device_kind)
    if reason is not None:
        return reason
    if block[0] % LANES or block[1] % LANES:
        return (
            f"needs blocks whose sides are multiples of {LANES}, not {block[0]} × {block[1]}. "
            "Use implementation='xla', or prune larger blocks."
        )
    most = (k // block[0]) * (n_out // block[1])
    if most > _SCALARS:
        return (
            f"needs at most {_SCALARS} places for blocks, not {most}. Use larger blocks, or split "
            "the weight."
        )
    config = default(rows, max(k, n_out), dtype, block)
    fits = _fast_bytes(config, max(k, n_out), dtype, block) <= _FAST_BYTES
    if not fits or not most_rows(dtype, block):
        return (
            f"cannot hold {config.rows} rows of {max(k, n_out)} entries and two blocks of "
            f"{block[0]} × {block[1]} in fast memory. Split the weight, or use smaller blocks."
        )
    return None


def configs(
    rows: int, k: int, n_out: int, dtype: Any, block: tuple[int, int], density: float
) -> list[Config]:
    """Return what is worth timing for a product, the default first.

    Args:
      rows: rows of x.
      k: its columns.
      n_out: columns of the result.
      dtype: type of both.
      block: height and width of a block.
      density: stored blocks over all.
    """
    del n_out, density
    first = default(rows, k, dtype, block)
    heights = {first.rows, max(first.rows // 2, _HEIGHTS[-1])}
    blocks = {first.blocks, max(first.blocks // 2, 1), first.blocks * 2}
    tried = [Config(a, b) for a in sorted(heights) for b in sorted(blocks)]
    fitting = [c for c in tried if _fast_bytes(c, k, dtype, block) <= _FAST_BYTES]
    return [first, *(c for c in fitting if c != first)]


def default(rows: int, k: int, dtype: Any, block: tuple[int, int]) -> Config:
    """Return tiles of as many rows as fit into fast memory, up to 1024.

    Args:
      rows: rows of the dense operand.
      k: its columns.
      dtype: its type.
      block: height and width of a block.
    """
    fewer = (most for side, most in _PER_STEP if block[0] * block[1] <= side * side)
    blocks = next(fewer, 1)
    needed = -(-rows // _HEIGHTS[-1]) * _HEIGHTS[-1]
    heights = [min(height, needed) for height in _HEIGHTS]
    tried = [Config(height, blocks) for height in heights]
    fitting = (c for c in tried if _fast_bytes(c, k, dtype, block) <= _FAST_BYTES)
    return next(fitting, tried[-1])


def _fast_bytes(config: Config, k: int, dtype: Any, block: tuple[int, int]) -> int:
    """Return the fast memory of a step: what is copied is there twice."""
    size = jnp.dtype(dtype).itemsize
    dense = 2 * config.rows * k * size
    stored = 2 * config.blocks * block[0] * block[1] * size
    return dense + stored + config.rows * max(block) * (2 * size + 4)


def forward(
    x: jax.Array,
    data: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    starts: jax.Array,
    *,
    n_out: int,
    count: Any = None,
    config: Config | None = None,
    interpret: Any = False,
) -> jax.Array:
    """Multiply x by a block-sparse weight.

    Args:
      x: (rows, K) float32 or bfloat16.
      data: (S, bk, bn) stored blocks of the same type, by column, then by row.
      rows: (S,) int32 block rows.
      columns: (S,) int32 block columns.
      starts: (N / bn + 1,) int32, the first slot of each block column.
      n_out: N.
      count: slots that hold blocks, scalar; the others cost nothing. None multiplies all.
      config: how the product is cut; `default` by default.
      interpret: run on any device: True, or Pallas' ``InterpretParams`` for TPUs.

    Returns:
      (rows, N) of the type of ``x``; sums are in float32. Block columns without blocks are zero.
    """
    del columns
    config = config or default(x.shape[0], x.shape[1], x.dtype, (data.shape[1], data.shape[2]))
    steps = plan(*_slots.of_columns(starts, count), rows, None, blocks=config.blocks)
    return product(x, data, steps, n_out, config, transposed=False, interpret=interpret)


def input_gradient(
    dy: jax.Array,
    data: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    by_row: jax.Array,
    row_starts: jax.Array,
    *,
    k: int,
    count: Any = None,
    config: Config | None = None,
    interpret: Any = False,
) -> jax.Array:
    """Multiply dy by the transpose of a block-sparse weight, whose blocks stay as they are.

    Args:
      dy: (rows, N) float32 or bfloat16.
      data: (S, bk, bn) stored blocks of the same type, by column, then by row.
      rows: (S,) int32 block rows.
      columns: (S,) int32 block columns.
      by_row: (S,) int32, the slots by row, then by column.
      row_starts: (K / bk + 1,) int32, where each block row begins in ``by_row``.
      k: K.
      count: slots that hold blocks, scalar; the others, which stand last in row 0, cost nothing.
        None multiplies all.
      config: how the product is cut; `default` by default.
      interpret: run on any device: True, or Pallas' ``InterpretParams`` for TPUs.

    Returns:
      (rows, K) of the type of ``dy``; sums are in float32. Block rows without blocks are zero.
    """
    config = config or default(dy.shape[0], dy.shape[1], dy.dtype, (data.shape[1], data.shape[2]))
    ends = _slots.of_rows(row_starts, rows.size, count)
    steps = plan(*ends, columns, by_row, blocks=config.blocks)
    return product(dy, data, steps, k, config, transposed=True, interpret=interpret)
