"""The TPU kernel of `block_tpu`: sums of products of stored blocks, line after line."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxprune.kernels._tpu import FAST_LIMIT, LANES, pltpu, result
from jaxprune.kernels.block_tpu_steps import Steps


class Config(NamedTuple):
    """How a product is cut.

    Attributes:
      rows: rows of the dense operand that are held at a time.
      blocks: stored blocks that one step multiplies.
    """

    rows: int
    blocks: int


def product(
    x: jax.Array,
    data: jax.Array,
    steps: Steps,
    width: int,
    config: Config,
    *,
    transposed: bool,
    interpret: Any,
) -> jax.Array:
    """Multiply x by a block-sparse weight or its transpose.

    Args:
      x: (rows, columns).
      data: (S, bk, bn) stored blocks of the same type.
      steps: which blocks each step multiplies.
      width: columns of the result.
      config: how the product is cut.
      transposed: multiply by the transpose.
      interpret: run on any device: True, or Pallas' ``InterpretParams`` for TPUs.
    """
    side = data.shape[1] if transposed else data.shape[2]
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=4,
        grid=(pl.cdiv(x.shape[0], config.rows), steps.number),
        in_specs=[
            pl.BlockSpec((config.rows, x.shape[1]), lambda i, t, *_: (i, 0)),
            pl.BlockSpec(memory_space=pl.ANY),
        ],
        out_specs=pl.BlockSpec((config.rows, side), lambda i, t, line, *_: (i, line[t])),
        scratch_shapes=[
            pltpu.VMEM((config.rows, side), jnp.float32),
            pltpu.VMEM((2, config.blocks, *data.shape[1:]), data.dtype),
            pltpu.SemaphoreType.DMA((2,)),
        ],
    )
    return pl.pallas_call(
        functools.partial(_kernel, transposed=transposed),
        grid_spec=grid_spec,
        out_shape=result((x.shape[0], width), x.dtype, x, data, *steps),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=FAST_LIMIT,
            disable_bounds_checks=True,  # they take longer than the copies that they check
        ),
        cost_estimate=_cost(x, data, width, config.rows),
        interpret=interpret,
        name="block_sparse_transposed" if transposed else "block_sparse",
    )(*steps[1:], x, data)


def _cost(x: jax.Array, data: jax.Array, width: int, height: int) -> pl.CostEstimate:
    tiles = pl.cdiv(x.shape[0], height)
    weights = tiles * data.size * data.dtype.itemsize
    dense = x.shape[0] * (x.shape[1] + width) * x.dtype.itemsize
    return pl.CostEstimate(
        flops=2 * x.shape[0] * data.size, transcendentals=0, bytes_accessed=weights + dense
    )


def _kernel(
    line: Any,
    live: Any,
    inner: Any,
    slot: Any,
    x: Any,
    data: Any,
    out: Any,
    total: Any,
    blocks: Any,
    arrived: Any,
    *,
    transposed: bool,
) -> None:
    """Add the products of one step's blocks to its line's sum, while the next ones are copied."""
    step, last = pl.program_id(1), pl.num_programs(1) - 1
    each = functools.partial(_each, live, blocks.shape[1])

    def copy(step: Any, place: Any) -> Any:
        half, source = step % 2, data.at[slot[step * blocks.shape[1] + place]]
        return pltpu.make_async_copy(source, blocks.at[half, place], arrived.at[half])

    # Each tile of rows begins anew, since another core may have the one before.
    pl.when(step == 0)(lambda: each(step, lambda place: copy(step, place).start()))
    pl.when(step < last)(lambda: each(step + 1, lambda place: copy(step + 1, place).start()))
    each(step, lambda place: copy(step, place).wait())

    @pl.when((step == 0) | (line[step] != line[jnp.maximum(step - 1, 0)]))
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    _multiply(live, inner, x, total, blocks, transposed)

    @pl.when((step == last) | (line[step] != line[jnp.minimum(step + 1, last)]))
    def _() -> None:
        out[...] = total[...].astype(out.dtype)


def _each(live: Any, count: int, step: Any, act: Callable[[Any], None]) -> None:
    """Act on all blocks of a step: on those of a full step without a loop, which takes longer."""

    @pl.when(live[step] == count)
    def _() -> None:
        for place in range(count):
            act(place)

    @pl.when(live[step] < count)
    def _() -> None:
        pl.loop(0, live[step])(act)


def _multiply(live: Any, inner: Any, x: Any, total: Any, blocks: Any, transposed: bool) -> None:
    """Add the products of one step's blocks."""
    step = pl.program_id(1)
    _, count, *block = blocks.shape
    depth = block[1 if transposed else 0]
    axes = (((1,), (1 if transposed else 0,)), ((), ()))

    def part(place: Any) -> jax.Array:
        start = pl.multiple_of(inner[step * count + place] * depth, LANES)
        dense, stored = x[:, pl.ds(start, depth)], blocks[step % 2, place]
        return lax.dot_general(dense, stored, axes, preferred_element_type=jnp.float32)

    @pl.when(live[step] == count)
    def _() -> None:
        total[...] += functools.reduce(jnp.add, map(part, range(count)))

    if count > 1:  # the last step of a line may not be full

        @pl.when(live[step] < count)
        def _() -> None:
            @pl.loop(0, live[step])
            def _(place: jax.Array) -> None:
                total[...] += part(place)
