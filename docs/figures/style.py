"""What the figures share: colours, type and cells."""

import os
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.patches import Rectangle

INK, GREY, FAINT, PAPER = "#1f2933", "#66727f", "#e7ecef", "#ffffff"
TEAL, AMBER = "#0f766e", "#d97706"
WORTH = LinearSegmentedColormap.from_list("worth", ["#eef4f3", "#8fc7bf", TEAL, "#0b3f3c"])
SIGNED = LinearSegmentedColormap.from_list("signed", [AMBER, "#f6e3c5", "#f4f6f6", "#a9d5cf", TEAL])
KEPT = LinearSegmentedColormap.from_list("kept", [FAINT, INK])

SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "figure.facecolor": PAPER,
    "svg.hashsalt": "jaxprune",
}


def cells(
    axes: Axes, values: np.ndarray, colours: Colormap, low: float, high: float, gap: float = 0.1
) -> None:
    """Draw a matrix as squares; NaN is left empty, with an outline."""
    rows, columns = values.shape
    for (row, column), value in np.ndenumerate(values):
        empty = bool(np.isnan(value))
        face = PAPER if empty else colours((float(value) - low) / (high - low))
        corner = (column + gap / 2, row + gap / 2)
        side = 1 - gap
        edge = "#d3dae0" if empty else "none"
        axes.add_patch(Rectangle(corner, side, side, facecolor=face, edgecolor=edge, linewidth=0.6))
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal")
    axes.axis("off")


def use() -> None:
    """Set the type and the colours of all figures, and that every run writes the same files."""
    mpl.use("agg")
    mpl.rcParams.update(SETTINGS)
    os.environ["SOURCE_DATE_EPOCH"] = "0"
