"""Block-sparse times dense, and its two gradients, on NVIDIA Hopper GPUs.

``y = x @ W``, ``dx = dy @ W^T`` and ``dW = x^T @ dy`` at the stored blocks only, for blocks whose
sides are multiples of 64, bfloat16 or float16, summed in float32. The work is that of the stored
blocks: an empty column of blocks costs its zeros, a slot beyond ``count`` nothing. Where the blocks
stand is data, so that another mask is not compiled again.

Two kernels share the first two products. In `block_gpu_columns` every output tile walks the list of
its block column; it suits blocks 128 wide, and 64 wide at high sparsity. In `block_gpu_union`
four columns 64 wide walk the union of their lists and share the dense tiles, which pays at low
sparsity. The gradient of the weight is in `block_gpu_weights`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.kernels import _hopper, _slots
from jaxprune.kernels import block_gpu_columns as by_column
from jaxprune.kernels import block_gpu_mosaic as mosaic
from jaxprune.kernels import block_gpu_union as by_union
from jaxprune.kernels import block_gpu_weights as by_block
from jaxprune.kernels.block_gpu_mosaic import LANES, Config
from jaxprune.kernels.block_gpu_weights import WeightConfig

_ROWS = 8  # TMA lays tiles of 8 rows over an array
_UNION_DENSITY = 0.2  # from here on four columns share so many blocks that the union pays


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
    if not _hopper.is_hopper(device_kind):
        return (
            f"needs an NVIDIA Hopper GPU (H100, H200), not {device_kind}. Use implementation='xla'."
        )
    if jnp.dtype(dtype) not in _hopper.DTYPES:
        return f"needs bfloat16 or float16, not {jnp.dtype(dtype).name}. Convert x and the blocks."
    if block[0] % LANES or block[1] % LANES:
        return (
            f"needs blocks whose sides are multiples of {LANES}, not {block[0]} × {block[1]}. "
            "Use implementation='xla', or prune larger blocks."
        )
    if k % block[0] or n_out % block[1]:
        return (
            f"needs whole blocks of {block[0]} × {block[1]}, not a weight of {k} × {n_out}. "
            f"Pad it to {k + -k % block[0]} × {n_out + -n_out % block[1]}."
        )
    if rows < 1:
        return "needs at least one row of x, not 0."
    return _hopper.missing()


def default(rows: int, columns: int, features: int, depth: int, density: float) -> Config:
    """Return how a product is cut where nothing was measured.

    Args:
      rows: rows of the dense operand.
      columns: block columns of the result.
      features: width of one.
      depth: contracted entries of a block.
      density: stored blocks over all.

    Returns:
      The kernel's settings.
    """
    processors = mosaic.multiprocessors()
    wide = features % (2 * LANES) == 0
    union = features == depth == LANES and density >= _UNION_DENSITY
    tokens = 256
    while tokens > LANES and (
        tokens // 2 >= rows or -(-rows // tokens) * (columns * features // LANES) < 2 * processors
    ):
        tokens //= 2
    if wide or union:
        return Config(tokens, union=union)
    if tokens == 256:  # two dense tiles of 256 rows leave room for 3 stages and small buffers
        return Config(tokens, stages=3, buffer=16)
    return Config(tokens, buffer=32)


def configs(
    rows: int, k: int, n_out: int, dtype: Any, block: tuple[int, int], density: float
) -> list[Config]:
    """Return what is worth timing for a product, the default first.

    Args:
      rows: rows of x.
      k: its columns.
      n_out: columns of the result.
      dtype: type of both; all settings serve either.
      block: height and width of a block.
      density: stored blocks over all.

    Returns:
      Settings that fit the shared memory.
    """
    del k, dtype
    depth, features = block
    first = default(rows, n_out // features, features, depth, density)
    if features % (2 * LANES) == 0:
        cuts = ((256, 4, 64), (128, 6, 64), (64, 7, 64))
    else:
        cuts = ((256, 3, 16), (192, 3, 64), (128, 5, 32), (64, 8, 32))
    found = [Config(*cut[:2], width, cut[2]) for cut in cuts for width in (4, 8, 16)]
    if features == depth == LANES:
        found += [Config(256, 4, width, union=True) for width in (4, 8, 16)]
        found += [Config(128, 6, union=True)]
    return list(dict.fromkeys([first, *found]))


def default_weights(
    slots: int, columns: int, block: tuple[int, int], processors: int | None = None
) -> WeightConfig:
    """Return how the gradient of a weight is cut where nothing was measured.

    Fewer blocks at once read more, but fill the last round of thread blocks better.

    Args:
      slots: stored blocks.
      columns: block columns.
      block: height and width of a block.
      processors: multiprocessors; those of the GPU by default.

    Returns:
      The kernel's settings.
    """
    processors = processors or mosaic.multiprocessors()
    return min(
        configs_weights(block),
        key=lambda config: by_block.estimate(slots, columns, block, config, processors),
    )


def configs_weights(block: tuple[int, int]) -> list[WeightConfig]:
    """Return what an autotuner tries for the gradient of a weight."""
    part = by_block.part_of(block[0])
    most = 256 // part
    found = []
    for members in sorted({1, max(1, most // 2), most}, reverse=True):
        stages, buffer = by_block.fitting(block, members)
        found.append(WeightConfig(members, stages, buffer))
    return found


def _count(count: Any, slots: int) -> jax.Array:
    return jnp.int32(slots) if count is None else jnp.asarray(count, jnp.int32)


def _padded(x: jax.Array) -> jax.Array:
    """Return x with rows of zeros up to a multiple of 8; x itself if it is one."""
    extra = -x.shape[0] % _ROWS
    return jnp.pad(x, ((0, extra), (0, 0))) if extra else x


def _product(
    dense: jax.Array,
    data: jax.Array,
    lists: by_column.Walk,
    faces: int,
    *,
    transposed: bool,
    config: Config | None,
    interpret: Any,
) -> jax.Array:
    depth, features = data.shape[:0:-1] if transposed else data.shape[1:]
    columns = lists.order.size
    density = lists.slots.size / (columns * faces)
    config = config or default(dense.shape[0], columns, features, depth, density)
    blocks = mosaic.multiprocessors()
    rows = dense.shape[0]
    dense = _padded(dense)
    if not config.union:
        out = by_column.product(
            dense,
            data,
            lists,
            transposed=transposed,
            config=config,
            blocks=blocks,
            interpret=interpret,
        )
    else:
        out = by_union.product(
            dense,
            data,
            by_union.unite(lists, faces),
            columns=columns,
            transposed=transposed,
            config=config,
            blocks=blocks,
            interpret=interpret,
        )
    return out[:rows] if out.shape[0] != rows else out


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
    interpret: Any = None,
) -> jax.Array:
    """Multiply x by a block-sparse weight.

    Args:
      x: (rows, K) bfloat16 or float16.
      data: (S, bk, bn) stored blocks of the same type, by column, then by row.
      rows: (S,) int32 block rows.
      columns: (S,) int32 block columns.
      starts: (N / bn + 1,) int32, the first slot of each block column.
      n_out: N.
      count: slots that hold blocks, scalar; the others cost nothing. None multiplies all.
      config: how the product is cut; `default` by default.
      interpret: parameters of Pallas' interpreter, for tests.

    Returns:
      (rows, N) of the type of ``x``. Block columns without blocks are zero.
    """
    del columns
    slots = lax.iota(jnp.int32, data.shape[0])
    lists = by_column.walk(*_slots.of_columns(starts, count), rows, slots)
    assert lists.order.size * data.shape[2] == n_out
    faces = x.shape[1] // data.shape[1]
    return _product(x, data, lists, faces, transposed=False, config=config, interpret=interpret)


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
    interpret: Any = None,
) -> jax.Array:
    """Multiply dy by the transpose of a block-sparse weight.

    Args:
      dy: (rows, N) bfloat16 or float16.
      data: (S, bk, bn) stored blocks of the same type, by column, then by row.
      rows: (S,) int32 block rows.
      columns: (S,) int32 block columns.
      by_row: (S,) int32, the slots by row, then by column.
      row_starts: (K / bk + 1,) int32, where each block row begins in ``by_row``.
      k: K.
      count: slots that hold blocks, scalar; the others, which stand last in row 0, cost nothing.
        None multiplies all.
      config: how the product is cut; `default` by default.
      interpret: parameters of Pallas' interpreter, for tests.

    Returns:
      (rows, K) of the type of ``dy``. Block rows without blocks are zero.
    """
    del rows
    ends = _slots.of_rows(row_starts, data.shape[0], count)
    lists = by_column.walk(*ends, columns[by_row], by_row)
    assert lists.order.size * data.shape[1] == k
    faces = dy.shape[1] // data.shape[2]
    return _product(dy, data, lists, faces, transposed=True, config=config, interpret=interpret)


def weight_gradient(
    x: jax.Array,
    dy: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    *,
    block: tuple[int, int],
    count: Any = None,
    config: WeightConfig | None = None,
    interpret: Any = None,
) -> jax.Array:
    """Multiply the transpose of x by dy, at the stored blocks.

    Args:
      x: (rows, K) bfloat16 or float16.
      dy: (rows, N) of the same type.
      rows: (S,) int32 block rows.
      columns: (S,) int32 block columns, rising.
      block: height and width of a block.
      count: slots that hold blocks, scalar; the others are not computed, and zero. None computes
        all.
      config: how the product is cut; `default_weights` by default.
      interpret: parameters of Pallas' interpreter, for tests.

    Returns:
      (S, bk, bn) of the type of ``x``.
    """
    config = config or default_weights(rows.size, dy.shape[1] // block[1], block)
    out = by_block.product(
        _padded(x),
        _padded(dy),
        rows,
        columns,
        _count(count, rows.size),
        block=block,
        config=config,
        blocks=mosaic.multiprocessors(),
        interpret=interpret,
    )
    if count is None:
        return out
    live = lax.broadcasted_iota(jnp.int32, out.shape, 0) < _count(count, rows.size)
    return jnp.where(live, out, jnp.zeros((), out.dtype))
