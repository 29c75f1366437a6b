"""``jaxprune bench``: measure products with compressed weights on this machine."""

from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console

from jaxprune.cli.progress import bar_of
from jaxprune.kernels import autotune
from jaxprune.kernels import bench as benchmark
from jaxprune.kernels.tuning import VARIABLE

_EFFORT = autotune.Effort(seconds=0.5)


def _left_out(metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def bench(
    *,
    out: Path,
    format: Annotated[tuple[str, ...], _left_out("N:M|HxW|bitmap ...")] = (),
    rows: Annotated[tuple[int, ...], _left_out("INT ...")] = (),
    shapes: Annotated[tuple[str, ...], _left_out("INxOUT ...")] = (),
    density: Annotated[tuple[float, ...], _left_out("FLOAT ...")] = (),
    dtype: Annotated[str | None, _left_out("bfloat16|float16|float32")] = None,
    tuning: Annotated[Path | None, _left_out("PATH")] = None,
    configs: Annotated[int | None, _left_out("INT")] = None,
    seconds: Annotated[float | None, _left_out("FLOAT")] = None,
) -> None:
    """Measure products with compressed weights against dense ones on this machine.

    Every implementation is checked, and the fastest that is right goes into a table of timings.
    JAXPRUNE_TUNING=PATH has jaxprune look products up there.

    The folder gets bench.json after each product, and bench.png.

    Args:
      out: folder for the results.
      format: 2:4 and the like, blocks such as 128x128, or bitmap. If left out, as what follows,
        what suits the device.
      rows: rows of the dense operand: 1 for generating text, thousands for training.
      shapes: inputs and outputs of the weight, such as 4096x11008.
      density: stored shares of blocks and bitmaps.
      dtype: of both operands.
      tuning: table of timings that is written, or added to. If left out, tuning.json in the folder.
      configs: settings that are tried of each kernel. If left out, all.
      seconds: no product is begun after so long. If left out, all are measured.
    """
    _check(configs, seconds)
    cases = benchmark.suite(
        formats=format, rows=rows, shapes=[_shape(text) for text in shapes], densities=density,
        dtype=dtype,
    )  # fmt: skip
    console, table = Console(), out / "tuning.json" if tuning is None else tuning
    # Accuracy is what other commands want; here products run as they do in a model.
    with jax.default_matmul_precision(None), bar_of(console) as bar:
        task = bar.add_task("products", total=len(cases))
        report = benchmark.run(
            cases, out, table=table, limit=seconds, configs=configs, effort=_EFFORT,
            show=lambda report: bar.advance(task),
        )  # fmt: skip
    benchmark.print_table(report, console)
    top = report["ceilings"]
    console.print(
        f"{report['device']}: a copy moves {top['bytes'] / 1e9:.0f} GB/s, a dense product does "
        f"{top['flops'] / 1e12:.3g} TFLOP/s; roofline is the share of what these allow.",
        highlight=False,
    )
    for line in benchmark.failures(report):
        console.print(f"failed: {line}", style="red", highlight=False, markup=False)
    if report["missed"]:
        console.print(f"{report['missed']} of {len(cases)} products were left out: --seconds.")
    console.print(f"written to {out}; use it with {VARIABLE}={table}", highlight=False)


def _shape(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdigit() for side in sides):
        raise ValueError(f"--shapes takes inputs x outputs, such as 4096x11008, got {text!r}.")
    return int(sides[0]), int(sides[1])


def _check(configs: int | None, seconds: float | None) -> None:
    if configs is not None and configs < 1:
        raise ValueError(f"--configs must be 1 or more, got {configs}.")
    if seconds is not None and not seconds > 0.0:
        raise ValueError(f"--seconds must be more than 0, got {seconds}.")
