"""Products and their times as JSON, as a table and as a plot."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.kernels.autotune import Measured, Timing


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What the device reaches where nothing is in the way.

    Attributes:
      bytes: a second, of a large copy, reads and writes together.
      flops: a second, of a large dense product.
    """

    bytes: float
    flops: float

    def seconds(self, measured: Measured) -> float:
        """Return the least time of a product: of its bytes or of its operations."""
        return max(measured.bytes / self.bytes, measured.flops / self.flops)

    def dense_seconds(self, measured: Measured) -> float:
        """Return the least time of the same product with an ordinary weight."""
        p = measured.case.product
        numbers = p.rows * (p.k + p.n_out) + p.k * p.n_out
        flops = 2.0 * p.rows * p.k * p.n_out
        return max(numbers * np.dtype(p.dtype).itemsize / self.bytes, flops / self.flops)


def as_line(measured: Measured, top: Ceilings) -> dict[str, Any]:
    """Return a product and its timings as JSON has them, with the shares of the roofline."""

    def timing(one: Timing) -> dict[str, Any]:
        kept = {k: v for k, v in dataclasses.asdict(one).items() if v is not None}
        if one.seconds is not None:
            dense = one is measured.dense
            least = top.dense_seconds(measured) if dense else top.seconds(measured)
            kept["roofline"] = least / one.seconds
        return kept

    best = measured.best
    return {
        **dataclasses.asdict(measured.case.product),
        "direction": measured.case.direction,
        "dense": timing(measured.dense),
        "timings": [timing(one) for one in measured.timings],
        "best": None if best is None else timing(best),
        "speedup": measured.speedup,
        "bytes": measured.bytes,
        "flops": measured.flops,
        "calls": measured.calls,
        "copies": measured.copies,
    }


HEADER = ("product", "dense ms", "its roofline", "fastest", "ms", "speed-up", "roofline", "error")


def shown(line: Mapping[str, Any]) -> list[str]:
    """Return a product's cells under `HEADER`."""
    name = f"{line['format']} {line['rows']} x {line['k']} x {line['n_out']}"
    if ":" not in line["format"]:
        name += f" {1 - line['density']:.0%}"
    if line["direction"] != "forward":
        name += f" {line['direction'].replace('_', ' ')}"
    dense, best = line["dense"].get("seconds"), line["best"]
    first = [name, "-", "-"]
    if dense is not None:
        first = [name, f"{dense * 1e3:.4g}", f"{line['dense']['roofline']:.0%}"]
    if best is None:
        why = [t["failure"] for t in line["timings"] if "failure" in t]
        return [*first, why[0] if why else "none", "-", "-", "-", "-"]
    config = best.get("config")
    how = best["implementation"] + (f" ({_settings(config)})" if config else "")
    ratio = "-" if line["speedup"] is None else f"{line['speedup']:.2f}x"
    error = "-" if "error" not in best else f"{best['error']:.1e}"
    return [*first, how, f"{best['seconds'] * 1e3:.4g}", ratio, f"{best['roofline']:.0%}", error]


def _settings(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(config.items()))


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw the speed-up of every product as a bar.

    Args:
      report: what `run` returns.
      path: of the picture.
    """
    from matplotlib.figure import Figure

    lines = [line for line in report["products"] if line["speedup"] is not None]
    figure = Figure(figsize=(8, 0.6 + 0.22 * max(len(lines), 1)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(lines))
    axes.barh(places, [line["speedup"] for line in lines], color="#4477aa")
    axes.set_yticks(places, [shown(line)[0] for line in lines], fontsize=7)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel(f"dense time / time of the fastest, {report['device']}")
    figure.savefig(path, dpi=120)


def print_table(report: Mapping[str, Any], console: Any = None) -> None:
    """Print all products as a table.

    Args:
      report: what `run` returns.
      console: of rich; a fresh one by default.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    found = Table(*HEADER, box=box.SIMPLE, pad_edge=False)
    found.columns[0].no_wrap = True
    for column in (*found.columns[1:3], *found.columns[4:]):
        column.justify = "right"
    for line in report["products"]:
        found.add_row(*shown(line))
    (console or Console()).print(found)


def failures(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each implementation that did not count, with the reason."""
    for line in report["products"]:
        for timing in (line["dense"], *line["timings"]):
            if "failure" in timing:
                config = timing.get("config")
                way = f"{timing['implementation']} {config or ''}".strip()
                yield f"{shown(line)[0]}: {way}: {timing['failure']}"
