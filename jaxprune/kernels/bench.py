"""Measure many products, and write JSON, a plot and a table of timings as they come."""

import dataclasses
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.kernels import autotune, tuning
from jaxprune.kernels._report import HEADER as HEADER
from jaxprune.kernels._report import Ceilings, as_line, draw
from jaxprune.kernels._report import failures as failures
from jaxprune.kernels._report import print_table as print_table
from jaxprune.kernels._report import shown as shown
from jaxprune.kernels._stopwatch import Effort, medians
from jaxprune.kernels.autotune import Case, Direction, case

GRADIENTS: tuple[Direction, ...] = ("forward", "input_gradient", "weight_gradient")

_FFN = ((4096, 11008), (11008, 4096))
_GPU = (
    ("2:4", (8192,), ((8192, 8192),)),
    ("2:4", (4096,), ((4096, 4096),)),
    ("2:4", (8192,), ((4096, 14336),)),
    ("2:4", (1,), ((4096, 4096), *_FFN, (8192, 8192))),
    ("128x128", (8192,), ((8192, 8192),)),
    ("2:4", (16, 64), ((8192, 8192), (4096, 4096))),
    ("1:4", (1, 8, 16), ((8192, 8192),)),
    ("2:8", (1, 8, 16), ((8192, 8192),)),
    ("64x64", (8192,), ((8192, 8192),)),
    ("2:4", (8, 32), ((8192, 8192), (4096, 4096))),
    ("2:4", (16, 64, 8, 32), _FFN),
)
_CPU = (
    ("128x128", (1, 16, 128), ((1024, 1024),)),
    ("64x64", (1, 16, 128), ((1024, 1024),)),
    ("2:4", (1, 128), ((1024, 1024),)),
    ("bitmap", (1, 128), ((1024, 1024),)),
)
_DENSITIES = {"block": (0.5, 0.25, 0.1), "bitmap": (0.5, 0.1)}


def suite(
    *,
    formats: Sequence[str] = (),
    rows: Sequence[int] = (),
    shapes: Sequence[tuple[int, int]] = (),
    densities: Sequence[float] = (),
    dtype: str | None = None,
) -> list[Case]:
    """Return the products that are measured on this kind of device.

    Args:
      formats: such as ``"2:4"``, ``"128x128"`` and ``"bitmap"``; none, as of the others, for those
        that suit the platform.
      rows: rows of the dense operand.
      shapes: of the weight, ``(k, n_out)``.
      densities: stored shares of a weight of blocks or a bitmap.
      dtype: of both operands.

    Returns:
      The cases, the most important first; of blocks with many rows the gradients, too.

    Example:
      >>> from jaxprune.kernels import bench
      >>> cases = bench.suite(formats=["2:4", "64x64"], rows=[8], shapes=[(128, 256)],
      ...                     densities=[0.5], dtype="float32")
      >>> [(c.product.format, c.product.rows, c.direction) for c in cases]
      [('2:4', 8, 'forward'), ('64x64', 8, 'forward')]
    """
    accelerated = jax.default_backend() != "cpu"
    table = _GPU if accelerated else _CPU
    dtype = dtype or ("bfloat16" if accelerated else "float32")
    if formats or rows or shapes:
        names = formats or list(dict.fromkeys(line[0] for line in table))
        known = {name: [line for line in table if line[0] == name] for name in names}
        table = tuple(
            (name, rows or _of(known, name, 1), shapes or _of(known, name, 2)) for name in names
        )
    found = [
        case(name, count, k, n_out, density=density, dtype=dtype, direction=direction)
        for name, counts, sides in table
        for k, n_out in sides
        for count in counts
        for density in _densities(name, densities)
        for direction in _directions(name, count)
    ]
    return list(dict.fromkeys(found))


def _of(known: Mapping[str, Any], name: str, field: int) -> Any:
    """Return the rows or the shapes of a format in the table, or of all of it."""
    lines = known[name] or (_GPU if jax.default_backend() != "cpu" else _CPU)
    return list(dict.fromkeys(value for line in lines for value in line[field]))


def _densities(name: str, asked: Sequence[float]) -> Sequence[float | None]:
    if ":" in name:
        return (None,)
    return asked or _DENSITIES["bitmap" if name == "bitmap" else "block"]


def _directions(name: str, rows: int) -> tuple[Direction, ...]:
    return GRADIENTS if "x" in name and rows >= 512 else ("forward",)


def ceilings(dtype: Any, effort: Effort | None = None) -> Ceilings:
    """Measure the device: a large copy, and a large dense product.

    Args:
      dtype: of the product.
      effort: how long is measured; a second by default.

    Returns:
      Both rates.

    Example:
      >>> from jaxprune.kernels import autotune, bench
      >>> quick = autotune.Effort(sample=1e-4, seconds=0.0, rounds=(1, 1))
      >>> found = bench.ceilings("float32", quick)
      >>> found.bytes > 0 and found.flops > 0
      True
    """
    small = jax.default_backend() == "cpu"
    side, length = (1024, 1 << 24) if small else (8192, 1 << 29)
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 2)
    a, b = (jax.random.normal(key, (side, side), dtype) for key in keys)
    x = jnp.ones(length, jnp.float32)
    copy, multiply = jax.jit(jnp.negative), jax.jit(jnp.matmul)
    times = medians(
        {"copy": lambda: copy(x), "multiply": lambda: multiply(a, b)}, effort or Effort()
    )
    return Ceilings(2 * x.nbytes / times["copy"], 2 * side**3 / times["multiply"])


def run(
    cases: Sequence[Case],
    out: Path,
    *,
    table: Path | None = None,
    show: Callable[[dict[str, Any]], None] | None = None,
    limit: float | None = None,
    plot: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Measure products, and write what is known after each.

    Args:
      cases: which products.
      out: folder for ``bench.json`` and ``bench.png``.
      table: of timings, which the products measured are put into; ``out / "tuning.json"`` by
        default.
      show: takes the report after each product.
      limit: seconds after which no other product is begun; None for none.
      plot: whether to draw the plot at the end.
      **options: of `autotune.measure`.

    Returns:
      What ``bench.json`` holds.
    """
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    table = table or out / "tuning.json"
    known = list(tuning.load(table)) if table.exists() else []
    effort = options.get("effort", Effort())
    top = ceilings(cases[0].product.dtype, effort)
    report: dict[str, Any] = {**_machine(), "ceilings": dataclasses.asdict(top)}
    report |= {"products": [], "missed": len(cases)}
    for measured in autotune.measure(cases, **options):
        line = as_line(measured, top)
        report["seconds"] = time.perf_counter() - start
        report["products"].append({**line, "at": report["seconds"]})
        report["missed"] = len(cases) - len(report["products"])
        _write(out / "bench.json", report)
        if (entry := measured.entry()) is not None:
            known.append(entry)
            tuning.save(known, table)
        if show is not None:
            show(report)
        if limit is not None and report["seconds"] > limit:
            break
    # A device that has become slower, such as a hot one, shows as lower rates than at the start.
    report["ceilings_after"] = dataclasses.asdict(ceilings(cases[0].product.dtype, effort))
    _write(out / "bench.json", report)
    if plot:
        draw(report, out / "bench.png")
    return report


def _machine() -> dict[str, Any]:
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def _write(path: Path, report: Mapping[str, Any]) -> None:
    """Replace the file as a whole, so that a run that is killed leaves one that can be read."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    part.replace(path)
