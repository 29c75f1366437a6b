"""Products with compressed weights: every implementation against dense, and torch's peers.

python -m experiments.benchmarks.kernels [--seconds S] [--configs N] [--only KERNEL ...]
    [--peers] [--runs FOLDER] [--output FOLDER]

The same as ``jaxprune bench``, for machines without tyro; and with torch's cuSPARSELt and block
kernels in the same process. bench.json, bench.png and tuning.json go to the folder of runs, the
result also into the file of the device that report.py reads.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks import timing
from jaxprune.kernels import autotune, bench

RUNS = Path("runs") / "bench"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write what is known after each product."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", nargs="+", default=())
    parser.add_argument("--rows", nargs="+", default=(), type=int)
    parser.add_argument("--shapes", nargs="+", default=(), help="of weights, such as 4096x11008")
    parser.add_argument("--density", nargs="+", default=(), type=float)
    parser.add_argument("--dtype")
    parser.add_argument("--configs", type=int, help="settings of each kernel; all by default")
    parser.add_argument("--only", nargs="+", help="implementations; all by default")
    parser.add_argument("--sample", type=float, default=0.4, help="seconds for a product")
    parser.add_argument("--seconds", type=float, help="no product is begun after this long")
    parser.add_argument("--together", type=int, default=8, help="products compiled at a time")
    parser.add_argument("--peers", action="store_true", help="measure torch's, too")
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--output", type=Path, default=timing.RESULTS)
    given = parser.parse_args(words)
    shapes = [(int(k), int(n)) for k, n in (shape.split("x") for shape in given.shapes)]
    cases = bench.suite(
        formats=given.format, rows=given.rows, shapes=shapes, densities=given.density,
        dtype=given.dtype,
    )  # fmt: skip

    def keep(report: dict[str, Any]) -> None:
        names = ("ceilings", "ceilings_after", "products", "missed", "seconds")
        content = {name: report[name] for name in names if name in report}
        timing.save("kernels", words, content, given.output)

    def show(report: dict[str, Any]) -> None:
        line = report["products"][-1]
        print(f"{line['at']:.0f} s:", *bench.shown(line), flush=True)
        keep(report)

    report = bench.run(
        cases, given.runs, show=show, limit=given.seconds, configs=given.configs, only=given.only,
        together=given.together, effort=autotune.Effort(seconds=given.sample),
    )  # fmt: skip
    keep(report)
    for line in bench.failures(report):
        print("failed:", line)
    if given.peers:
        from experiments.benchmarks import kernels_torch

        jax.clear_caches()
        kernels_torch.main([str(given.runs / "bench.json"), "--output", str(given.output)])


def table(
    lines: Sequence[dict[str, Any]], peers: Sequence[dict[str, Any]]
) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return header and cells of the page's table; with the best peer of each product."""
    known = {_sizes(line): line for line in peers if "peers" in line}
    cells = []
    for line in lines:
        row = bench.shown(line)
        found = known.get(_sizes(line)) if line["direction"] == "forward" else None
        cells.append([*row, *_best_peer(found)] if peers else row)
    return (*bench.HEADER, *(("torch ms", "to torch's dense") if peers else ())), cells


def _sizes(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[key] for key in ("format", "rows", "k", "n_out", "density"))


def _best_peer(line: dict[str, Any] | None) -> list[str]:
    timed = (
        [(p["seconds"], name) for name, p in line["peers"].items() if "seconds" in p]
        if line
        else []
    )
    if line is None or not timed:
        return ["-", "-"]
    seconds, name = min(timed)
    return [f"{seconds * 1e3:.4g}", f"{line['dense'] / seconds:.2f}x {name}"]


if __name__ == "__main__":
    main()
