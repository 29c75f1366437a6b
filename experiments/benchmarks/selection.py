"""How long an exact selection takes, next to one read of the scores, a sort and `lax.top_k`.

    python -m experiments.benchmarks.selection

Every mask is checked against numpy. A tenth of the scores is kept.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxprune
from experiments.benchmarks import timing
from jaxprune._core import counts, select

Make = Callable[[np.random.Generator, int], np.ndarray]


def _normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n, np.float32)


def _tied(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, 10, n).astype(np.float32)


def _zeros(rng: np.random.Generator, n: int) -> np.ndarray:
    values = np.abs(rng.standard_normal(n, np.float32))
    return np.where(rng.random(n, np.float32) < 0.95, np.float32(0), values)


def _equal(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.full(n, rng.standard_normal(), np.float32)


def _special(rng: np.random.Generator, n: int) -> np.ndarray:
    choices = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42, 1.0, -1.0], np.float32)
    return choices[rng.integers(0, len(choices), n)]


def _neighbours(rng: np.random.Generator, n: int) -> np.ndarray:
    return (1 + rng.integers(-4, 5, n) * 2.0**-22).astype(np.float32)


def _wide(rng: np.random.Generator, n: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        sizes = np.exp(30 * rng.standard_normal(n, np.float32))
    return np.where(rng.random(n, np.float32) < 0.5, -sizes, sizes)


def _sorted(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.sort(_normal(rng, n))


TIMED: dict[str, Make] = {"normal": _normal, "ten values": _tied, "95 % zeros": _zeros}
HARD: dict[str, Make] = {
    "all equal": _equal,
    "NaN, inf, zeros": _special,
    "neighbours": _neighbours,
    "wide": _wide,
    "sorted": _sorted,
}


def expected_mask(scores: np.ndarray, k: int) -> np.ndarray:
    """Select in numpy: largest first, ties to the lower index, NaN lowest, -0.0 equal to 0.0."""
    bits = scores.astype(np.float32).view(np.int32)
    order = np.where(bits < 0, -(bits & np.int32(0x7FFFFFFF)), bits)
    order = np.where(np.isnan(scores.astype(np.float32)), np.int32(-(2**31)), order)
    if k == 0:
        return np.zeros(len(scores), bool)
    threshold = np.partition(order, len(order) - k)[len(order) - k]
    mask = order > threshold
    mask[np.flatnonzero(order == threshold)[: k - mask.sum()]] = True
    return mask


_read = jax.jit(lambda x: jnp.sum(x, dtype=jnp.float32))
_sort = jax.jit(jnp.sort)
_top_k = jax.jit(lax.top_k, static_argnums=1)
_select = jax.jit(jaxprune.top_k_mask)


@jax.jit
def _timed_select(scores: jax.Array, k: jax.Array) -> jax.Array:
    """Select without the check for NaN: whoever jits an effect alone pays for slower dispatch."""
    count = counts.as_count(k)
    return select._masks((scores,), count, dtype=scores.dtype, axes=None, mesh_axes=((),))[0]


def check(scores: jax.Array | np.ndarray, k: int) -> int:
    """Return in how many places the mask is wrong."""
    got = np.asarray(_select(scores, jnp.int32(k)))
    return int(np.sum(got != expected_mask(np.asarray(scores), k)))


def check_hard(sizes: Sequence[int]) -> dict[str, int]:
    """Select from inputs that are hard to get right; count masks, and those that are wrong."""
    rng = np.random.default_rng(0)
    wrong = []
    for n in track(sizes, "hard inputs", console=Console(stderr=True)):
        for make in [*TIMED.values(), *HARD.values()]:
            for dtype in ("float32", "bfloat16"):
                scores = jnp.asarray(make(rng, n)).astype(dtype)
                wrong += [check(scores, k) > 0 for k in (0, 1, 17, n // 3, n - 1, n)]
    return {"masks": len(wrong), "wrong": sum(wrong)}


def measure(n: int, dtype: str, kind: str, effort: timing.Effort) -> dict[str, Any]:
    """Time one size, type and input."""
    rng = np.random.default_rng(n)
    scores, k = jnp.asarray(TIMED[kind](rng, n)).astype(dtype), n // 10
    traced = jnp.int32(k)
    kernel = "mosaic_gpu" in _timed_select.lower(scores, traced).as_text()
    row = {"n": n, "dtype": dtype, "input": kind, "k": k, "kernel": kernel}
    cases: dict[str, timing.Run] = {
        "read": lambda: _read(scores),
        "select": lambda: _timed_select(scores, traced),
        "sort": lambda: _sort(scores),
        "top_k": lambda: _top_k(scores, k),
    }
    return row | {"wrong": check(scores, k)} | timing.medians(cases, effort)


def power(n: int) -> str:
    """Write a round number as 1e7."""
    return f"{n:.0e}".replace("e+0", "e")


def table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells: the selection's time, and ratios to it."""
    header = ["scores", "type", "input", "select", "in reads", "sort / select", "top_k / select"]
    cells = [
        [
            power(row["n"]),
            row["dtype"],
            row["input"],
            timing.shown(row["select"]),
            timing.ratio(row["select"], row["read"]),
            timing.ratio(row["sort"], row["select"]),
            timing.ratio(row["top_k"], row["select"]),
        ]
        for row in rows
    ]
    return header, cells


def checked(rows: Sequence[dict[str, Any]], hard: dict[str, int]) -> tuple[int, int]:
    """Return how many masks were compared with numpy's, and how many were wrong."""
    wrong = sum(row["wrong"] > 0 for row in rows)
    return len(rows) + hard["masks"], wrong + hard["wrong"]


def _print(rows: Sequence[dict[str, Any]], hard: dict[str, int]) -> None:
    header, cells = table(rows)
    shown = Table(*header, title=f"exact selection on {timing.device()['device']}")
    for line in cells:
        shown.add_row(*line)
    console = Console()
    console.print(shown)
    masks, wrong = checked(rows, hard)
    console.print(f"{masks} masks compared with numpy, {wrong} wrong")


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns 1 if a mask was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e6, 1e7, 1e8])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--hard", type=int, nargs="*", default=[1000, 100_003, 2_000_003])
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each case")
    parser.add_argument("--output", type=Path, default=timing.RESULTS)
    args = parser.parse_args(argv)
    effort = timing.Effort(total=args.seconds)
    cases = [(int(n), dtype, kind) for n in args.sizes for dtype in args.dtypes for kind in TIMED]
    progress = track(cases, "timing", console=Console(stderr=True))
    rows = [measure(*case, effort) for case in progress]
    hard = check_hard(args.hard)
    _print(rows, hard)
    timing.save("selection", argv, {"rows": rows, "hard": hard}, args.output)
    return int(checked(rows, hard)[1] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
