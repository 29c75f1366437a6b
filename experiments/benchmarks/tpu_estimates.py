"""Write docs/benchmarks-tpu.md: what the TPU compiler makes of the kernels, without a TPU.

python -m experiments.benchmarks.tpu_estimates
"""

import functools
import importlib.metadata
import math
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks import tpu_aot
from experiments.benchmarks.tpu_aot import CHIPS, Chip
from jaxprune.kernels import block_tpu, block_tpu_gradient, nm_tpu
from jaxprune.kernels.nm_tpu_layout import tile

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks-tpu.md"
SIDE = 8192  # of the weights
TOKENS = 4096
BLOCKS = (128, 256, 512)
SPARSITIES = (0.5, 0.75, 0.9)
PATTERNS = ((2, 4), (4, 8), (1, 4), (2, 8), (1, 16))
ROWS = (8, 64, 128)
PRODUCTS = ("forward", "input gradient", "weight gradient")
_WIDTH = 2  # bytes of a bfloat16

HEAD = """\
# TPU estimates

No TPU was used. `libtpu` compiles for chips that are not there, and every kernel was compiled for
v5e, v5p and v6e in bfloat16. The figures are the compiler's and arithmetic on them, not
measurements; nothing else of jaxprune has been run on a TPU.

Time is the longer of two. **Cycles**: the length of the compiler's static schedule, and at least
the products at the matrix units' published rate. **Copies**: the bytes that the kernel moves, at
the memory's published rate. Starting copies is in the schedule, waiting for them is not. Both cores
of a v5p share the work where a kernel has two parts or more along its first grid axis.
"""

DENSE = """\
## The dense product

`jnp.dot`, whose time below is the longer of its arithmetic and its bytes at the published rates:
what no dense product can beat. XLA's own estimate is longer, and is not used in the ratios.
"""

BLOCK = f"""\
## Block-sparse

{TOKENS} rows times a weight of {SIDE} × {SIDE}, with as many blocks in every column, rounded to
whole ones: 2 of 16 blocks of 512 stand for 90%. `a step` are the cycles of one that is full, `of
peak` is the share of the published rate that it reaches. The other columns say how many times
faster than the dense product (at least, above) each sparsity is. The matrix units of a v6e are 256
wide, so that blocks of 128 leave half of them idle.
There the dense product is faster at 50%, and so are gradients of weights with blocks of 256.
"""

NM = f"""\
## N:M with few rows

Rows times a weight of {SIDE} × {SIDE}. `bytes` is the packed weight over the dense one; its inverse
bounds the gain. `limit` says whether the copies or the cycles take longer.
Below 1 the dense product is faster: with 128 rows on a v5p, whose memory is fast for what its
vector units do.
"""


class Cost(NamedTuple):
    """What a kernel takes, in seconds."""

    cycles: float
    copies: float

    @property
    def seconds(self) -> float:
        return max(self)


def dense_cost(chip: Chip, rows: int) -> Cost:
    """Return what a dense product with a square weight takes at least."""
    moved = (SIDE * SIDE + 2 * rows * SIDE) * _WIDTH
    return Cost(2 * rows * SIDE * SIDE / chip.flops, moved / chip.bytes)


def split_over(chip: Chip, parts: int) -> int:
    """Return how many cores share so many independent parts."""
    return min(chip.cores, parts)


class Step(NamedTuple):
    """Cycles of the parts of a block-sparse kernel.

    Attributes:
      full: multiply as many blocks as a step may have; for the weight gradient, one block.
      single: multiply one block, where a step has fewer.
      rest: of any step, beside.
      edges: clear and write the sum of a line, a column or row of blocks.
    """

    full: int
    single: int
    rest: int
    edges: int


def stored_per_line(block: int, sparsity: float) -> int:
    """Return how many blocks a column of them keeps: whole ones."""
    return max(1, round(SIDE // block * (1 - sparsity)))


def block_cost(chip: Chip, product: str, block: int, sparsity: float, step: Step) -> Cost:
    """Return what a block-sparse product takes whose columns hold as many blocks."""
    lines, kept = SIDE // block, stored_per_line(block, sparsity)
    weight = lines * kept * block * block * _WIDTH
    if product == PRODUCTS[2]:
        parts = -(-TOKENS // gradient_config(block).rows)
        again = lines * (kept if parts > 1 else 1)  # a column's gradients stay if all rows fit
        moved = (lines * kept + again) * TOKENS * block * _WIDTH + weight
        taken = lines * kept * (parts * (step.full + step.rest) + step.edges)
        taken /= split_over(chip, lines * kept)
    else:
        config = block_config(block)
        tiles = -(-TOKENS // config.rows)
        full, single = divmod(kept, config.blocks)
        line = full * step.full + single * step.single + step.edges
        line += (full + (single > 0)) * step.rest
        moved = tiles * weight + 2 * TOKENS * SIDE * _WIDTH
        taken = tiles * lines * line / split_over(chip, tiles)
    return Cost(taken / chip.clock, moved / chip.bytes)


def block_config(block: int) -> block_tpu.Config:
    """Return how the products with a weight of such blocks are cut."""
    return block_tpu.default(TOKENS, SIDE, jnp.bfloat16, (block, block))


def gradient_config(block: int) -> block_tpu_gradient.Config:
    """Return how the gradient of a weight of such blocks is cut."""
    return block_tpu_gradient.default(TOKENS, jnp.bfloat16, (block, block))


def block_step(chip: str, product: str, block: int, folder: Path) -> Step:
    """Compile a block-sparse product and read its schedule."""
    slots, lines = (SIDE // block) ** 2 // 4, SIDE // block
    dense, index = _array((TOKENS, SIDE)), _array((slots,), jnp.int32)
    data, starts = _array((slots, block, block)), _array((lines + 1,), jnp.int32)
    least = math.ceil(_work(product, block) / CHIPS[chip].per_cycle)
    if product == PRODUCTS[2]:
        run = functools.partial(block_tpu.weight_gradient, block=(block, block))
        tpu_aot.compiled(chip, run, dense, dense, index, index)
        found = tpu_aot.schedule(folder, "block_sparse_gradient")
        rows, chunk = gradient_config(block)
        return Step(max(found.loop * (rows // chunk), least), 0, found.rest, found.edges)
    if product == PRODUCTS[0]:
        run = functools.partial(block_tpu.forward, n_out=SIDE)
        tpu_aot.compiled(chip, run, dense, data, index, index, starts)
        found = tpu_aot.schedule(folder, "block_sparse")
    else:
        run = functools.partial(block_tpu.input_gradient, k=SIDE)
        tpu_aot.compiled(chip, run, dense, data, index, index, index, starts)
        found = tpu_aot.schedule(folder, "block_sparse_transposed")
    return Step(max(found.straight, least), found.loop, found.rest, found.edges)


def nm_cost(chip: str, n: int, m: int, rows: int, folder: Path) -> tuple[Cost, float]:
    """Compile an N:M product; return what it takes, and its weight's bytes over dense ones."""
    figures, groups = CHIPS[chip], SIDE // m
    kind = "TPU v6 lite" if chip == "v6e" else "TPU v5"
    config = nm_tpu.default(rows, SIDE, SIDE, n, m, device_kind=kind)
    values, places = _array((SIDE, groups, n)), _array((SIDE, groups, n), jnp.uint8)
    packed = jax.eval_shape(functools.partial(nm_tpu.pack, m=m), values, places)
    run = functools.partial(nm_tpu.matmul, n=n, m=m, n_out=SIDE, config=config)
    tpu_aot.compiled(chip, run, _array((rows, SIDE)), packed)
    trips = config.columns // config.chunk
    found = tpu_aot.schedule(folder, f"nm_{n}_{m}")
    cycles = found.loop * trips + found.rest + found.edges
    parts = -(-SIDE // config.columns)
    steps = parts * (packed.values.shape[1] // tile(groups, n, m))
    weight = sum(a.size * a.dtype.itemsize for a in packed)
    moved = weight + 2 * rows * SIDE * _WIDTH
    taken = steps * cycles / split_over(figures, parts)
    share = weight / (SIDE * SIDE * _WIDTH)
    return Cost(taken / figures.clock, moved / figures.bytes), share


def page(folder: Path) -> str:
    """Return the page's text."""
    versions = f"jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}"
    versions += f", Python {platform.python_version()}"
    made = f"`python -m experiments.benchmarks.tpu_estimates` ({versions}).\n"
    parts = [HEAD, made, DENSE, _dense_table(folder), BLOCK, _block_table(folder)]
    return "\n".join([*parts, NM, _nm_table(folder)])


def _dense_table(folder: Path) -> str:
    header = ["chip", "rows", "time at least", "XLA's estimate", "cost analysis"]
    return _markdown(header, list(_dense_rows(folder)))


def _dense_rows(folder: Path) -> Iterator[list[str]]:
    for chip, figures in CHIPS.items():
        for rows in (*ROWS, TOKENS):
            made = tpu_aot.compiled(chip, jnp.dot, _array((rows, SIDE)), _array((SIDE, SIDE)))
            _clear(folder)
            cycles = tpu_aot.estimated_cycles(made) / figures.clock
            optimal = made.cost_analysis()["optimal_seconds"]
            least = dense_cost(figures, rows).seconds
            yield [chip, str(rows), *map(_micro, (least, cycles, optimal))]


def _block_table(folder: Path) -> str:
    header = ["chip", "block", "product", "a step", "of peak"]
    return _markdown(header + [f"{s:.0%}" for s in SPARSITIES], list(_block_rows(folder)))


def _block_rows(folder: Path) -> Iterator[list[str]]:
    for chip, figures in CHIPS.items():
        dense = dense_cost(figures, TOKENS).seconds
        for block in BLOCKS:
            for product in PRODUCTS:
                step = block_step(chip, product, block, folder)
                costs = [block_cost(figures, product, block, s, step) for s in SPARSITIES]
                ratios = [f"{dense / cost.seconds:.2f}" for cost in costs]
                cycles = step.full + step.rest
                peak = f"{_work(product, block) / (cycles * figures.per_cycle):.0%}"
                yield [chip, str(block), product, str(cycles), peak, *ratios]


def _work(product: str, block: int) -> int:
    """Return the operations of a full step."""
    rows, blocks = block_config(block)
    if product == PRODUCTS[2]:
        rows, blocks = gradient_config(block).rows, 1
    return 2 * rows * blocks * block * block


def _nm_table(folder: Path) -> str:
    header = ["chip", "pattern", "bytes"]
    for rows in ROWS:
        header += [f"{rows} rows", "limit"]
    return _markdown(header, list(_nm_rows(folder)))


def _nm_rows(folder: Path) -> Iterator[list[str]]:
    for chip, figures in CHIPS.items():
        for n, m in PATTERNS:
            found = [nm_cost(chip, n, m, rows, folder) for rows in ROWS]
            cells = [chip, f"{n}:{m}", f"{found[0][1]:.3f}"]
            for rows, (cost, _) in zip(ROWS, found, strict=True):
                ratio = dense_cost(figures, rows).seconds / cost.seconds
                cells += [f"{ratio:.2f}", "copies" if cost.copies > cost.cycles else "cycles"]
            yield cells


def _array(shape: tuple[int, ...], dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us"


def _markdown(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    aligned = ["---" if i == 0 else "---:" for i in range(len(header))]
    lines = [f"| {' | '.join(line)} |" for line in (header, aligned, *cells)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compile everything and write the page."""
    reason = tpu_aot.missing()
    if reason is not None:
        raise SystemExit(reason)
    with tpu_aot.dumping() as folder:
        PAGE.write_text(page(folder))


if __name__ == "__main__":
    main()
