"""Write docs/benchmarks-tpu.md: what the TPU compiler makes of the kernels, without a TPU.

    python -m experiments.benchmarks.tpu_estimates

With `--tuning`, write the table of estimates instead, which `sparse_matmul` chooses by on a TPU as
long as nothing was measured there.
"""

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.benchmarks import tpu_aot, tpu_costs
from experiments.benchmarks.tpu_aot import CHIPS
from experiments.benchmarks.tpu_costs import PRODUCTS, Size, array
from jaxprune.kernels import tuning

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks-tpu.md"
SIDE = 8192  # of the weights
TOKENS = 4096
BLOCKS = (128, 256, 512)
SPARSITIES = (0.5, 0.75, 0.9)
PATTERNS = ((2, 4), (4, 8), (1, 4), (2, 8), (1, 16))
ROWS = (8, 64, 128)

WEIGHTS = ((2048, 2048), (4096, 4096), (8192, 8192), (4096, 14336), (14336, 4096))
MANY = (1024, 4096, 16384)  # rows of block-sparse products in the table of estimates
FEW = (2, 16, 64)  # rows of N:M products
MARGIN = 1.2  # by which a kernel must be faster, for what a schedule does not say

HEAD = """\
# TPU estimates

No TPU was used. `libtpu` compiles for chips that are not there, and every kernel was compiled for
v5e, v5p and v6e in bfloat16. The figures are the compiler's and arithmetic on them, not
measurements; nothing of jaxprune has been run on a TPU. That the kernels are right is tested in
Pallas' interpreter of TPUs, with two cores, late copies and a watch for races.

Time is the longer of two, and what XLA estimates for its own operations around the kernel; those
that it gives to a v6e's sparse cores have no estimate and are left out. **Cycles**: the length of
the compiler's static schedule, and at least the products at the matrix units' published rate.
**Copies**: the bytes that the kernel moves, at the memory's published rate. Starting copies is in
the schedule, waiting for them is not. Both cores of a v5p share the work where a kernel has two
parts or more along its first grid axis.
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
faster than the dense product (at least, above) each sparsity is; below 1 the dense product is
faster. The matrix units of a v6e are 256 wide, so that blocks of 128 leave half of them idle: use
larger blocks there.
"""

NM = f"""\
## N:M with few rows

Rows times a weight of {SIDE} × {SIDE}. `bytes` is the packed weight over the dense one; its inverse
bounds the gain. `limit` says whether the copies or the cycles take longer. Below 1 the dense
product is faster: with many rows on a v5p, whose memory is fast for what its vector units do.
"""

CHOICE = f"""\
## What is chosen

`jaxprune/kernels/tuning_tpu.json` holds such estimates for bfloat16 and the sizes of common layers,
each marked as an estimate; `python -m experiments.benchmarks.tpu_estimates --tuning FILE` wrote it.
`sparse_matmul` takes a kernel on these chips where it is estimated to be {MARGIN} times faster than
making the weight dense and multiplying with that, in the product and for blocks also together with
both gradients; elsewhere it makes the weight dense. What `jaxprune.kernels.autotune` measures goes
before estimates, and `implementation=` before both.
"""


def page(folder: Path) -> str:
    """Return the page's text."""
    versions = f"jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}"
    versions += f", Python {platform.python_version()}"
    made = f"`python -m experiments.benchmarks.tpu_estimates` ({versions}).\n"
    parts = [HEAD, made, DENSE, _dense_table(folder), BLOCK, _block_table(folder)]
    return "\n".join([*parts, NM, _nm_table(folder), CHOICE])


def _dense_table(folder: Path) -> str:
    header = ["chip", "rows", "time at least", "XLA's estimate", "cost analysis"]
    return _markdown(header, list(_dense_rows(folder)))


def _dense_rows(folder: Path) -> Iterator[list[str]]:
    for chip, figures in CHIPS.items():
        for rows in (*ROWS, TOKENS):
            made = tpu_aot.compiled(chip, jnp.dot, array((rows, SIDE)), array((SIDE, SIDE)))
            tpu_aot.clear(folder)
            cycles = tpu_aot.estimated_cycles(made) / figures.clock
            optimal = made.cost_analysis()["optimal_seconds"]
            least = tpu_costs.dense_cost(figures, Size(rows, SIDE, SIDE)).seconds
            yield [chip, str(rows), *map(_micro, (least, cycles, optimal))]


def _block_table(folder: Path) -> str:
    header = ["chip", "block", "product", "a step", "of peak"]
    return _markdown(header + [f"{s:.0%}" for s in SPARSITIES], list(_block_rows(folder)))


def _block_rows(folder: Path) -> Iterator[list[str]]:
    size = Size(TOKENS, SIDE, SIDE)
    for chip, figures in CHIPS.items():
        dense = tpu_costs.dense_cost(figures, size).seconds
        for block in BLOCKS:
            for product in PRODUCTS:
                step = tpu_costs.block_step(chip, product, block, size, folder)
                costs = [
                    tpu_costs.block_cost(figures, product, block, 1 - s, size, step)
                    for s in SPARSITIES
                ]
                ratios = [f"{dense / cost.seconds:.2f}" for cost in costs]
                cycles = step.full + step.rest
                peak = f"{_work(product, block) / (cycles * figures.per_cycle):.0%}"
                yield [chip, str(block), product, str(cycles), peak, *ratios]


def _work(product: str, block: int) -> int:
    """Return the operations of a full step."""
    if product == PRODUCTS[2]:
        return tpu_costs.block_work(block, tpu_costs.gradient_config(TOKENS, block).rows)
    config = tpu_costs.block_config(TOKENS, SIDE, block)
    return tpu_costs.block_work(block, config.rows, config.blocks)


def _nm_table(folder: Path) -> str:
    header = ["chip", "pattern", "bytes"]
    for rows in ROWS:
        header += [f"{rows} rows", "limit"]
    return _markdown(header, list(_nm_rows(folder)))


def _nm_rows(folder: Path) -> Iterator[list[str]]:
    sizes = [Size(rows, SIDE, SIDE) for rows in ROWS]
    for chip, figures in CHIPS.items():
        for n, m in PATTERNS:
            found = [tpu_costs.nm_cost(chip, n, m, size, folder) for size in sizes]
            cells = [chip, f"{n}:{m}", f"{found[0][1]:.3f}"]
            for size, (cost, _) in zip(sizes, found, strict=True):
                ratio = tpu_costs.dense_cost(figures, size).seconds / cost.seconds
                cells += [f"{ratio:.2f}", "copies" if cost.copies > cost.cycles else "cycles"]
            yield cells


def entries(folder: Path) -> Iterator[tuning.Entry]:
    """Yield the table of estimates."""
    for chip in CHIPS:
        for weight in WEIGHTS:
            for block in BLOCKS:
                for rows in MANY:
                    yield from _block_entries(chip, block, Size(rows, *weight), folder)
            for n, m in PATTERNS:
                for rows in FEW:
                    size = Size(rows, *weight)
                    seconds = tpu_costs.nm_cost(chip, n, m, size, folder)[0].seconds
                    yield entry(chip, f"{n}:{m}", n / m, size, "nm_tpu", [seconds])


def _block_entries(chip: str, block: int, size: Size, folder: Path) -> Iterator[tuning.Entry]:
    steps = {p: tpu_costs.block_step(chip, p, block, size, folder) for p in PRODUCTS}
    for sparsity in SPARSITIES:
        seconds = [
            tpu_costs.block_cost(CHIPS[chip], p, block, 1 - sparsity, size, step).seconds
            for p, step in steps.items()
        ]
        density = round(1 - sparsity, 3)
        yield entry(chip, f"{block}x{block}", density, size, "block_tpu", seconds)


def entry(
    chip: str, format: str, density: float, size: Size, kernel: str, seconds: Sequence[float]
) -> tuning.Entry:
    """Return what is chosen for a product: a kernel, or making the weight dense.

    Args:
      chip: one of `CHIPS`.
      format: as tables of timings name it.
      density: stored share of the weight.
      size: of the product.
      kernel: its name.
      seconds: what it takes, for the product or for that and its gradients.
    """
    dense = tpu_costs.dense_cost(CHIPS[chip], size).seconds
    made = dense + size.weight / CHIPS[chip].bytes  # the weight is written, too
    faster = MARGIN * seconds[0] < made and MARGIN * sum(seconds) < made * len(seconds)
    product = tuning.Product(CHIPS[chip].kind, format, "bfloat16", *size, density)
    best, taken = (kernel, seconds[0]) if faster else ("dense", made)
    return tuning.Entry(product, best, round(dense / taken, 2), estimated=True)


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us"


def _markdown(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    aligned = ["---" if i == 0 else "---:" for i in range(len(header))]
    lines = [f"| {' | '.join(line)} |" for line in (header, aligned, *cells)]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    """Compile everything and write the page, or the table of estimates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tuning", type=Path, help="write the table of estimates to this file")
    given = parser.parse_args(argv)
    reason = tpu_aot.missing()
    if reason is not None:
        raise SystemExit(reason)
    with tpu_aot.dumping() as folder:
        if given.tuning is None:
            PAGE.write_text(page(folder))
        else:
            tuning.save(entries(folder), given.tuning)


if __name__ == "__main__":
    main(sys.argv[1:])
