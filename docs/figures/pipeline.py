"""The picture of the concepts page: score -> allocation -> pattern -> mask -> transform.

Every cell and number in it is computed by the library, on two small kernels.
"""

import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

import jaxprune
from docs.figures import style
from jaxprune.types import Tree

SHAPES = {"hidden": (8, 12), "out": (12, 4)}  # [in, out]
SCHEDULE = jaxprune.schedules.cubic(0.0, 0.75, begin=0, end=100)
ALLOCATION = jaxprune.allocation.erdos_renyi_kernel
PATTERNS = {
    "Unstructured()": jaxprune.Unstructured(),
    "NM(2, 4)": jaxprune.NM(2, 4),
    "Block((2, 2))": jaxprune.Block((2, 2)),
    "Channel(-1)": jaxprune.Channel(-1),
}
STAGES = (  # left edge, name, question, code
    (0.16, "score", "what is it\nworth?", "magnitude"),
    (1.68, "allocation", "how much does\neach layer keep?", "erdos_renyi_kernel"),
    (3.28, "pattern", "which shapes may\nzeros take?", "Unstructured()"),
    (5.22, "mask", "what stays?\nTrue = kept", "exactly k, no sort"),
    (6.82, "transform", "pruned weights land\non exactly zero", "where(mask, step, −w)"),
)
WIDTH, HEIGHT, CELL = 8.2, 4.4, 0.082  # inches
TOPS = {"hidden": 3.50, "out": 2.60}  # of the two kernels
ARROWS, CODE, INPUTS = 2.55, 1.36, 0.12  # heights of the arrows, the code, the inputs


def weights() -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(4), len(SHAPES))
    pairs = zip(keys, SHAPES.items(), strict=True)
    return {path: jax.random.normal(key, shape) for key, (path, shape) in pairs}


def one_update(params: Tree) -> tuple[Tree, Tree]:
    """The masks, and the weights after the update that prunes them."""
    tx = jaxprune.gradual(optax.sgd(0.1), SCHEDULE.final, allocation=ALLOCATION, where=".")
    updates, opt_state = tx.update(params, tx.init(params), params)
    return jaxprune.get_masks(opt_state), optax.apply_updates(params, updates)


def panel(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes; all lengths in inches, from the left and from the bottom."""
    box = (left / WIDTH, (top - height) / HEIGHT, width / WIDTH, height / HEIGHT)
    return figure.add_axes(box)


def text(figure: Figure, x: float, y: float, words: str, **settings: Any) -> None:
    figure.text(x / WIDTH, y / HEIGHT, words, **settings)


def arrow(figure: Figure, start: tuple[float, float], end: tuple[float, float]) -> None:
    points = [(x / WIDTH, y / HEIGHT) for x, y in (start, end)]
    look = {"arrowstyle": "-|>", "mutation_scale": 11, "linewidth": 1.3, "color": style.GREY}
    figure.add_artist(FancyArrowPatch(*points, shrinkA=0, shrinkB=0, **look))


def kernels(figure: Figure, left: float, values: dict[str, np.ndarray], **look: Any) -> None:
    """Draw the two kernels one above the other."""
    for path, matrix in values.items():
        rows, columns = matrix.shape
        axes = panel(figure, left, TOPS[path], columns * CELL, rows * CELL)
        style.cells(axes, matrix, **look)


def heads(figure: Figure) -> None:
    """Write the names, the questions and the code of the stages."""
    for left, name, question, code in STAGES:
        text(figure, left, 4.15, name, size=12, weight="bold", color=style.TEAL)
        for line, y in zip(question.splitlines(), (3.97, 3.82), strict=True):
            text(figure, left, y, line, size=7.8, color=style.GREY)
        text(figure, left, CODE, code, size=7, family="DejaVu Sans Mono")
    for (left, name, *_), (right, *_) in itertools.pairwise(STAGES):
        begin = left + (1.56 if name == "pattern" else 1.09)
        arrow(figure, (begin, ARROWS), (right - 0.11, ARROWS))


def names_and_shapes(figure: Figure, left: float) -> None:
    for path, (rows, columns) in SHAPES.items():
        words = f"{path}  {rows}×{columns}"
        text(figure, left, TOPS[path] + 0.04, words, size=6.5, color=style.GREY)


def shares(figure: Figure, left: float) -> None:
    """Draw how much of each layer the allocation keeps."""
    for path, density in ALLOCATION(SHAPES, SCHEDULE.final).items():
        rows, columns = SHAPES[path]
        axes = panel(figure, left, TOPS[path] - 0.16, 0.984, 0.17)
        axes.add_patch(Rectangle((0, 0), 1, 1, color=style.FAINT))
        axes.add_patch(Rectangle((0, 0), density, 1, color=style.TEAL))
        axes.axis("off")
        words = f"keeps {round(density * rows * columns)} of {rows * columns}"
        text(figure, left, TOPS[path] - 0.48, words, size=7.5)


def tiles(figure: Figure, left: float, scores: jax.Array) -> None:
    """Draw the four patterns, each with half of the same scores kept."""
    for index, (name, pattern) in enumerate(PATTERNS.items()):
        mask = pattern.mask(scores, pattern.units(scores.shape, 0.5))
        x, y = left + 0.80 * (index % 2), TOPS["out" if index > 1 else "hidden"]
        axes = panel(figure, x, y, 8 * CELL, 8 * CELL)
        style.cells(axes, np.asarray(mask, float), style.KEPT, 0, 1)
        chosen = index == 0
        text(
            figure,
            x,
            y + 0.045,
            name,
            size=5.6,
            family="DejaVu Sans Mono",
            weight="bold" if chosen else "normal",
            color=style.TEAL if chosen else style.GREY,
        )


def given(figure: Figure, left: float, width: float, words: str, code: str = "") -> None:
    """Draw one of the things that go in from below."""
    corner, size = (left / WIDTH, INPUTS / HEIGHT), (width / WIDTH, 0.92 / HEIGHT)
    look = {"facecolor": "#f5f7f8", "edgecolor": style.FAINT, "linewidth": 1.0, "zorder": -1}
    rounded = "round,pad=0,rounding_size=0.012"
    box = FancyBboxPatch(*(corner, *size), boxstyle=rounded, mutation_aspect=WIDTH / HEIGHT, **look)
    figure.add_artist(box)
    for line, y in zip(words.splitlines(), (0.84, 0.69), strict=True):
        text(figure, left + 0.10, y, line, size=7.5)
    text(figure, left + 0.10, 0.32, code, size=7, family="DejaVu Sans Mono")
    arrow(figure, (left + 0.5, INPUTS + 0.94), (left + 0.5, CODE - 0.06))


def inputs(figure: Figure) -> None:
    """Draw what goes in from below: weights and gradients, the schedule, the inner optimizer."""
    (score, *_), (budget, *_), _, _, (last, *_) = STAGES
    given(figure, score - 0.08, 1.24, "weights and\ntheir gradients", "params, grads")
    given(figure, budget - 0.08, 1.44, "schedule: the\nsparsity at this step")
    given(figure, last - 0.08, 1.36, "the step of the\noptimizer inside", "optax.adamw(1e-3)")
    axes = panel(figure, budget + 0.06, 0.60, 1.16, 0.38)
    steps = np.arange(141)
    axes.plot(steps, [SCHEDULE.at(int(step)) for step in steps], color=style.TEAL, linewidth=1.5)
    axes.plot([100], [SCHEDULE.at(100)], "o", color=style.AMBER, markersize=4.5)
    axes.set(ylim=(-0.03, 0.9), xticks=[], yticks=[])
    axes.patch.set_alpha(0.0)


def legend(figure: Figure) -> None:
    left = STAGES[2][0]
    words = ("Each stage is a plain function or value.", "Pass another one, or write your own.")
    for line, y in zip(words, (0.84, 0.69), strict=True):
        text(figure, left, y, line, size=7.8, color=style.GREY)
    swatches = (
        ("kept", style.INK, "none"),
        ("pruned", style.FAINT, "none"),
        ("0.0", "w", "#c5ced6"),
    )
    for index, (word, colour, edge) in enumerate(swatches):
        x = left + 0.68 * index
        axes = panel(figure, x, 0.42, 0.1, 0.1)
        axes.add_patch(Rectangle((0.05, 0.05), 0.9, 0.9, facecolor=colour, edgecolor=edge))
        axes.axis("off")
        text(figure, x + 0.15, 0.33, word, size=7.5)


def draw(file: Path) -> None:
    """Draw the picture."""
    figure = plt.figure(figsize=(WIDTH, HEIGHT))
    params = weights()
    masks, after = one_update(params)
    scores = {path: np.abs(np.asarray(leaf)) for path, leaf in params.items()}
    kept = {path: np.asarray(leaf, float) for path, leaf in masks.items()}
    landed = {p: np.where(kept[p] > 0, np.asarray(leaf), np.nan) for p, leaf in after.items()}
    lefts = [left for left, *_ in STAGES]
    heads(figure)
    for left in (lefts[0], lefts[1], lefts[3], lefts[4]):
        names_and_shapes(figure, left)
    kernels(figure, lefts[0], scores, colours=style.WORTH, low=0, high=2.4)
    shares(figure, lefts[1])
    tiles(figure, lefts[2], jax.random.uniform(jax.random.key(0), (8, 8)))
    kernels(figure, lefts[3], kept, colours=style.KEPT, low=0, high=1)
    kernels(figure, lefts[4], landed, colours=style.SIGNED, low=-2.2, high=2.2)
    inputs(figure)
    legend(figure)
    figure.savefig(file)
