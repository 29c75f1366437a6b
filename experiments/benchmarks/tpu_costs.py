"""What products take on a TPU that is not there: the compiler's schedules, and arithmetic on them.

Time is the longer of two, of the compiler's static schedule and of the bytes that are moved, and
what XLA estimates for its own operations around a kernel.
"""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks import tpu_aot
from experiments.benchmarks.tpu_aot import CHIPS, Chip
from jaxprune.kernels import block_tpu, block_tpu_gradient, nm_tpu
from jaxprune.kernels.nm_tpu_layout import tile

PRODUCTS = ("forward", "input gradient", "weight gradient")
_SIDE, _TOKENS = 8192, 4096  # of what is compiled for the schedule of a block-sparse kernel
_WIDTH = 2  # bytes of a bfloat16


class Size(NamedTuple):
    """A product in bfloat16: rows of the dense operand, and the weight."""

    rows: int
    k: int
    n_out: int

    @property
    def weight(self) -> int:
        """Bytes of the dense weight."""
        return self.k * self.n_out * _WIDTH


class Cost(NamedTuple):
    """What a product takes, in seconds.

    Attributes:
      cycles: of the schedule.
      copies: of the bytes.
      around: of XLA's operations, before and after.
    """

    cycles: float
    copies: float
    around: float = 0.0

    @property
    def seconds(self) -> float:
        return max(self.cycles, self.copies) + self.around


class Step(NamedTuple):
    """Cycles of the parts of a block-sparse kernel.

    Attributes:
      full: multiply as many blocks as a step may have; for the weight gradient, one block.
      single: multiply one block, where a step has fewer.
      rest: of any step, beside.
      edges: clear and write the sum of a line, a column or row of blocks.
      around: XLA's, to find the steps.
    """

    full: int
    single: int
    rest: int
    edges: int
    around: int


def dense_cost(chip: Chip, size: Size) -> Cost:
    """Return what a dense product takes at least; its gradients take as long."""
    moved = size.weight + size.rows * (size.k + size.n_out) * _WIDTH
    return Cost(2 * size.rows * size.k * size.n_out / chip.flops, moved / chip.bytes)


def split_over(chip: Chip, parts: int) -> int:
    """Return how many cores share so many independent parts."""
    return min(chip.cores, parts)


def stored_per_line(length: int, block: int, density: float) -> int:
    """Return how many blocks a line of them keeps: whole ones."""
    return max(1, round(length // block * density))


def block_cost(
    chip: Chip, product: str, block: int, density: float, size: Size, step: Step
) -> Cost:
    """Return what a block-sparse product takes whose lines hold as many blocks."""
    rows, k, n_out = size
    length, across = (n_out, k) if product == PRODUCTS[1] else (k, n_out)
    lines, kept = across // block, stored_per_line(length, block, density)
    weight = lines * kept * block * block * _WIDTH
    if product == PRODUCTS[2]:
        parts = -(-rows // gradient_config(rows, block).rows)
        again = lines * (kept if parts > 1 else 1)  # a column's gradients stay if all rows fit
        moved = (lines * kept + again) * rows * block * _WIDTH + weight
        taken = lines * kept * (parts * (step.full + step.rest) + step.edges)
        taken /= split_over(chip, lines * kept)
    else:
        config = block_config(rows, length, block)
        tiles = -(-rows // config.rows)
        full, single = divmod(kept, config.blocks)
        line = full * step.full + single * step.single + step.edges
        line += (full + (single > 0)) * step.rest
        moved = tiles * weight + rows * (k + n_out) * _WIDTH
        taken = tiles * lines * line / split_over(chip, tiles)
    return Cost(taken / chip.clock, moved / chip.bytes, step.around / chip.clock)


def block_config(rows: int, length: int, block: int) -> block_tpu.Config:
    """Return how a product with a weight of such blocks is cut."""
    return block_tpu.default(rows, length, jnp.bfloat16, (block, block))


def gradient_config(rows: int, block: int) -> block_tpu_gradient.Config:
    """Return how the gradient of a weight of such blocks is cut."""
    return block_tpu_gradient.default(rows, jnp.bfloat16, (block, block))


def block_step(chip: str, product: str, block: int, size: Size, folder: Path) -> Step:
    """Compile a block-sparse product and read its schedule.

    Args:
      chip: one of `CHIPS`.
      product: one of `PRODUCTS`.
      block: side of a block.
      size: of the product, as far as it says how the product is cut.
      folder: where the compiler writes its schedules.
    """
    if product == PRODUCTS[2]:
        return _gradient_step(chip, block, gradient_config(size.rows, block), folder)
    length = size.n_out if product == PRODUCTS[1] else size.k
    return _product_step(chip, product, block, block_config(size.rows, length, block), folder)


def block_work(block: int, rows: int, blocks: int = 1) -> int:
    """Return the operations of so many blocks with so many rows."""
    return 2 * rows * blocks * block * block


@functools.cache
def _product_step(
    chip: str, product: str, block: int, config: block_tpu.Config, folder: Path
) -> Step:
    slots, lines = (_SIDE // block) ** 2 // 4, _SIDE // block
    dense, index = array((_TOKENS, _SIDE)), array((slots,), jnp.int32)
    data, starts = array((slots, block, block)), array((lines + 1,), jnp.int32)
    if product == PRODUCTS[0]:
        run = functools.partial(block_tpu.forward, n_out=_SIDE, config=config)
        program = tpu_aot.compiled(chip, run, dense, data, index, index, starts)
        found = tpu_aot.schedule(folder, "block_sparse")
    else:
        run = functools.partial(block_tpu.input_gradient, k=_SIDE, config=config)
        program = tpu_aot.compiled(chip, run, dense, data, index, index, index, starts)
        found = tpu_aot.schedule(folder, "block_sparse_transposed")
    full, single = (
        _least(chip, block_work(block, config.rows, blocks)) for blocks in (config.blocks, 1)
    )
    around = tpu_aot.estimated_cycles(program)
    return Step(max(found.straight, full), max(found.loop, single), found.rest, found.edges, around)


@functools.cache
def _gradient_step(chip: str, block: int, config: block_tpu_gradient.Config, folder: Path) -> Step:
    slots = (_SIDE // block) ** 2 // 4
    rows = -(-_TOKENS // config.rows) * config.rows  # nothing is padded
    dense, index = array((rows, _SIDE)), array((slots,), jnp.int32)
    run = functools.partial(block_tpu.weight_gradient, block=(block, block), config=config)
    program = tpu_aot.compiled(chip, run, dense, dense, index, index)
    found = tpu_aot.schedule(folder, "block_sparse_gradient")
    full = max(
        found.loop * (config.rows // config.chunk), _least(chip, block_work(block, config.rows))
    )
    return Step(full, 0, found.rest, found.edges, tpu_aot.estimated_cycles(program))


def _least(chip: str, operations: int) -> int:
    """Return the cycles of operations at the matrix units' published rate."""
    return math.ceil(operations / CHIPS[chip].per_cycle)


def nm_cost(chip: str, n: int, m: int, size: Size, folder: Path) -> tuple[Cost, float]:
    """Compile an N:M product; return what it takes, and its weight's bytes over dense ones."""
    figures, (rows, k, n_out) = CHIPS[chip], size
    config = nm_tpu.default(rows, k, n_out, n, m, device_kind=figures.kind)
    values, places = array((n_out, k // m, n)), array((n_out, k // m, n), jnp.uint8)
    packed = jax.eval_shape(functools.partial(nm_tpu.pack, m=m), values, places)
    run = functools.partial(nm_tpu.matmul, n=n, m=m, n_out=n_out, config=config)
    program = tpu_aot.compiled(chip, run, array((rows, k)), packed)
    found = tpu_aot.schedule(folder, f"nm_{n}_{m}")
    cycles = found.loop * (config.columns // config.chunk) + found.rest + found.edges
    parts = -(-n_out // config.columns)
    steps = parts * (packed.values.shape[1] // tile(k // m, n, m))
    weight = sum(a.size * a.dtype.itemsize for a in packed)
    moved = weight + rows * (k + n_out) * _WIDTH
    taken = steps * cycles / split_over(figures, parts) / figures.clock
    around = tpu_aot.estimated_cycles(program) / figures.clock
    return Cost(taken, moved / figures.bytes, around), weight / size.weight


def array(shape: tuple[int, ...], dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    """Describe an array, of bfloat16 by default."""
    return jax.ShapeDtypeStruct(shape, dtype)
