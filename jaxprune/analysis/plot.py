"""Pictures of sparsity, drawn to a file; no state of matplotlib is touched."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from jaxprune.analysis._rows import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_File: TypeAlias = str | os.PathLike[str]

# Okabe and Ito's colours, which all kinds of colour vision tell apart; dashes beyond.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
_INK, _FAINT, _GRID = "#333333", "#666666", "#dddddd"
_TALLEST = 200.0  # inches, for models of very many layers


def per_layer(summary: Summary, file: _File) -> Path:
    """Draw the sparsity of each weight as a bar.

    Args:
      summary: the figures, from `jaxprune.analysis.summary`.
      file: where to draw; the suffix decides the format (``.png``, ``.svg``, ``.pdf``).

    Returns:
      The file.

    Raises:
      ValueError: a suffix that matplotlib cannot draw.

    Example:
      >>> import pathlib, tempfile
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> masks = {"kernel": jnp.array([[True, False, False]])}
      >>> figures = jaxprune.analysis.summary(
      ...     {"kernel": jnp.ones((1, 3))}, masks, print_table=False
      ... )
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = jaxprune.analysis.plot.per_layer(figures, pathlib.Path(folder, "layers.svg"))
      ...     "kernel" in file.read_text(), "1 of 3" in file.read_text()
      (True, True)
    """
    rows, total = summary.rows, summary.total
    figure, axes = _canvas(7.0, min(1.3 + 0.27 * len(rows), _TALLEST))
    places = np.arange(len(rows))
    axes.barh(places, [100 * row.sparsity for row in rows], height=0.66, color=_COLOURS[0])
    axes.set_yticks(places, [row.path for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first layer on top
    axes.tick_params(axis="y", length=0)
    for place, row in zip(places, rows, strict=True):
        text = f"  {row.sparsity:.1%}   {row.kept:,} of {row.size:,}"
        axes.annotate(text, (100, place), va="center", size=7.5, color=_FAINT)
    axes.axvline(100 * total.sparsity, color=_COLOURS[1], linewidth=1.2, linestyle="--")
    axes.set_title(
        f"total {total.sparsity:.1%}: {total.kept:,} of {total.size:,} weights kept",
        size=9,
        color=_COLOURS[1],
        loc="left",
    )
    axes.set_xlim(0, 100)
    axes.grid(axis="x", color=_GRID, linewidth=0.7)
    _percent(axes.xaxis)
    axes.set_xlabel("sparsity")
    return _write(figure, file)


def over_time(
    steps: Sequence[float] | Any, series: Mapping[str, Any] | Sequence[float] | Any, file: _File
) -> Path:
    """Draw sparsity over training steps as a line, or as several with labels.

    Args:
      steps: the steps, ascending.
      series: the sparsity at each step, in [0, 1]; or ``{label: sparsities}`` for several lines.
      file: where to draw; the suffix decides the format (``.png``, ``.svg``, ``.pdf``).

    Returns:
      The file.

    Raises:
      ValueError: lengths that differ, values outside [0, 1], nothing to draw, or a suffix that
        matplotlib cannot draw.

    Example:
      >>> import pathlib, tempfile
      >>> import jaxprune
      >>> schedule = jaxprune.schedules.cubic(0.0, 0.9, begin=10, end=80)
      >>> steps = range(100)
      >>> series = {"cubic": [schedule.at(step) for step in steps]}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = pathlib.Path(folder, "time.svg")
      ...     "cubic" in jaxprune.analysis.plot.over_time(steps, series, file).read_text()
      True
    """
    lines = series if isinstance(series, Mapping) else {"": series}
    x, values = _checked(steps, lines)
    figure, axes = _canvas(6.4, 3.6)
    for index, (label, y) in enumerate(values.items()):
        dash = _DASHES[index // len(_COLOURS) % len(_DASHES)]
        colour = _COLOURS[index % len(_COLOURS)]
        # Masks stay as they are between updates: steps, not slopes.
        axes.step(
            x, 100 * y, dash, where="post", color=colour, linewidth=1.8, label=label, clip_on=False
        )
    axes.set_ylim(0, 100)
    axes.margins(x=0)
    axes.grid(color=_GRID, linewidth=0.7)
    _percent(axes.yaxis)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.set_xlabel("step")
    axes.set_ylabel("sparsity")
    if any(lines):
        figure.legend(loc="outside right upper", frameon=False, labelcolor=_INK)
    return _write(figure, file)


def _checked(steps: Any, lines: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    x = np.asarray(steps, np.float64)
    if not lines or not x.size:
        raise ValueError("there is nothing to draw: give at least one step and one series.")
    values = {label: np.asarray(line, np.float64) for label, line in lines.items()}
    for label, line in values.items():
        name = f"series[{label!r}]" if label else "series"
        if line.shape != x.shape or x.ndim != 1:
            raise ValueError(
                f"{name} has shape {line.shape}, steps has shape {x.shape}. Give one sparsity for "
                "each step."
            )
        wrong = ~((line >= 0.0) & (line <= 1.0))  # NaN is wrong too
        if wrong.any():
            raise ValueError(
                f"{name} is {line[wrong][0]} at step {x[wrong][0]:g}; a sparsity is the share of "
                "zeros, in [0, 1]."
            )
    return x, values


def _canvas(width: float, height: float) -> tuple["Figure", "Axes"]:
    """Return an empty figure in the house's style, of no window and no global list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, seldom needed
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=8.5)
    axes.set_axisbelow(True)
    return figure, axes


def _percent(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{value:g}%")
    axis.set_ticks(range(0, 101, 20))


def _write(figure: "Figure", file: _File) -> Path:
    file = Path(file)
    known = sorted(figure.canvas.get_supported_filetypes())
    if file.suffix[1:].lower() not in known:
        raise ValueError(
            f"file={str(file)!r} has the suffix {file.suffix!r}; it decides the format, one of "
            f"{', '.join(known)}."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return file
