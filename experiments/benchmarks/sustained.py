"""How long a GPU keeps up its clock: large products alone and in turns, at first and later on.

python -m experiments.benchmarks.sustained [--side N] [--seconds S] [--output FOLDER]

A device that draws more power than it may lowers its clock within a second, and a product takes
longer than in a short benchmark. Dense and compressed products of one size are timed in samples of
a few runs, each kind alone and both in turns, after a second of rest; `nvidia-smi` tells clock and
power, where it is there.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks import timing
from jaxprune.kernels import _trials as trials
from jaxprune.kernels import autotune, dispatch

REST = 1.0  # seconds before each, so that the device cools
RUNS = 6  # of a sample: some 10 ms
FORMATS = {"2:4": None, "128x128": 0.5}
QUERY = ("clocks.sm", "power.draw")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and keep the rows."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, default=8192 if _on_gpu() else 256)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--output", type=Path, default=timing.RESULTS)
    given = parser.parse_args(words)
    rows = []
    for format, density in FORMATS.items():
        for row in measure(format, density, given.side, given.seconds):
            print(row, flush=True)
            rows.append(row)
            timing.save("sustained", words, {"side": given.side, "rows": rows}, given.output)


def measure(
    format: str, density: float | None, side: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield a row for each of both products, alone and in turns with the other."""
    runs = programs(format, density, side)
    for names in (*((name,) for name in runs), tuple(runs)):
        time.sleep(REST)
        samples, state = timed({name: runs[name] for name in names}, seconds)
        beside = "in turns" if len(names) > 1 else "alone"
        for name in names:
            what = {"format": format, "product": name, "beside": beside}
            yield {**what, **summary(samples[name]), **state}


def programs(format: str, density: float | None, side: int) -> dict[str, Callable[[], Any]]:
    """Compile the dense product, and one with the same zeros compressed: a kernel's, if any."""
    dtype = "bfloat16" if _on_gpu() else "float32"
    product = autotune.case(format, side, side, side, density=density, dtype=dtype).product
    ways = [way for way in trials.ways(product, "forward", 1) if way.form != trials.ARRAY]
    keys = jax.random.split(jax.random.key(0, impl="rbg"))
    x = jax.jit(lambda key: trials.operands(product, "forward", key))(keys[0])
    found = {}
    for way in (trials.baseline("forward"), ways[-1]):
        weight = jax.jit(lambda key, form=way.form: trials.weight(product, form, key))(keys[1])
        program = jax.jit(way.call).lower(x, weight).compile()
        jax.block_until_ready(program(x, weight))
        made = way.name == dispatch.DENSE and way.form != trials.ARRAY
        found["made dense" if made else way.name] = lambda program=program, weight=weight: program(
            x, weight
        )
    return found


def timed(
    runs: Mapping[str, Callable[[], Any]], seconds: float
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return samples of all, in turns, and the device's lowest clock and largest power."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    told: list[tuple[float, ...]] = []
    asking = _asking()
    start = time.perf_counter()
    while True:
        for name, run in runs.items():
            samples[name].append(timing.seconds(run, RUNS))
        if time.perf_counter() - start > seconds:
            break
    if asking is not None:
        asking.terminate()
        told = [tuple(map(float, line.split(","))) for line in asking.communicate()[0].splitlines()]
    if not told:
        return samples, {}
    return samples, {"clock": min(line[0] for line in told), "power": max(line[1] for line in told)}


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Return the fastest sample, and the medians of the first tenth and of the second half."""
    first = samples[: max(1, len(samples) // 10)]
    return {
        "fastest": min(samples),
        "first": statistics.median(first),
        "later": statistics.median(samples[len(samples) // 2 :]),
    }


def table(rows: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return header and cells of the page's table."""
    header = ("format", "product", "beside", "fastest", "first", "later", "clock down to", "power")
    return header, [
        [
            row["format"], row["product"], row["beside"],
            *(timing.shown(row[key]) for key in ("fastest", "first", "later")),
            f"{row['clock']:.0f} MHz" if "clock" in row else "-",
            f"{row['power']:.0f} W" if "power" in row else "-",
        ]
        for row in rows
    ]  # fmt: skip


def _asking() -> Any:
    if not _on_gpu() or shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    return subprocess.Popen([*query, "-lms", "100"], stdout=subprocess.PIPE, text=True)


def _on_gpu() -> bool:
    return jax.default_backend() == "gpu"


if __name__ == "__main__":
    main()
