"""The section of the page on schedules."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments.runner import page
from experiments.runner.api import Claim, Result, Results
from experiments.runner.statistics import difference, sample

PUBLISHED = "25-75"
SOURCE = "Jin et al., The journey matters, arXiv:2501.12486"

SETTING = """\
The CNN of the quickstart (410,000 weights) to {sparsity:.0%} sparsity, by one ranking of magnitudes
over all layers; each update prunes the same share of what is left. Every cell spends the compute of
{compute} dense steps of {batch_size} images, where a step costs its density: who prunes early takes
more steps. Rows begin, and columns end pruning at that share of the compute. Test accuracy in %:
"""


def section(results: Results) -> str:
    """Write the section."""
    grid = windows(results)
    some = next(iter(results.values()))
    parts = [SETTING.format(**some.settings), _table(grid, results)]
    if "dense" in results:
        dense = results["dense"].values
        parts.append(f"Dense, {dense['steps']} steps: {sample(dense['accuracy']).shown()}.\n")
    parts += [page.image("schedules-grid", "Test accuracy by begin and end"), _claim(grid, results)]
    return "\n".join(parts)


def windows(results: Results) -> dict[tuple[float, float], Result]:
    """Return the results by begin and end."""
    found = {}
    for result in results.values():
        begin, end = result.settings["begin"], result.settings["end"]
        if begin is not None:
            found[begin, end] = result
    return dict(sorted(found.items()))


def _table(grid: Mapping[tuple[float, float], Result], results: Results) -> str:
    begins, ends = _axes(grid)
    rows = []
    for begin in begins:
        cells = [_cell(grid.get((begin, end))) for end in ends]
        rows.append([f"from {100 * begin:g}%", *cells])
    return page.table(["", *(f"to {100 * end:g}%" for end in ends)], rows)


def _cell(result: Result | None) -> str:
    if result is None:
        return ""
    return f"{sample(result.values['accuracy']).shown()} ({result.values['steps']:,})"


def _claim(grid: Mapping[tuple[float, float], Result], results: Results) -> str:
    if PUBLISHED not in results or len(grid) < 2:
        return "The published window, or the others, were not run.\n"
    means = {name: sample(results[name].values["accuracy"]).mean for name in _names(results)}
    best = max(means, key=lambda name: means[name])
    ours, other = (results[name].values["accuracy"] for name in (PUBLISHED, best))
    behind = difference(ours, other)
    rank = 1 + sum(mean > means[PUBLISHED] for mean in means.values())
    measured = f"best is {_window(best)}, ahead by {behind.shown()} points; "
    measured += f"{_window(PUBLISHED)} is number {rank} of {len(means)}"
    verdict = "reproduced" if not behind.above else "not reproduced"
    published = "Pruning from 25% to 75% of the compute is as good as the best of all windows"
    counts = "\nIn parentheses: steps of training.\n"
    return page.claims([Claim(published, SOURCE, measured, verdict)]) + counts


def _names(results: Results) -> list[str]:
    return [name for name, result in results.items() if result.settings["begin"] is not None]


def _window(name: str) -> str:
    return "{}% to {}%".format(*name.split("-"))


def _axes(grid: Mapping[tuple[float, float], Result]) -> tuple[list[float], list[float]]:
    return sorted({begin for begin, _ in grid}), sorted({end for _, end in grid})


def figures(results: Results) -> Mapping[str, Figure]:
    """Draw the grid."""
    grid = windows(results)
    begins, ends = _axes(grid)
    values = np.full((len(begins), len(ends)), np.nan)
    for (begin, end), result in grid.items():
        at = begins.index(begin), ends.index(end)
        values[at] = 100 * sample(result.values["accuracy"]).mean
    figure = Figure(figsize=(4.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.grid(False)
    shown = axes.imshow(values, cmap="viridis")
    figure.colorbar(shown, label="test accuracy (%)")
    axes.set_xticks(range(len(ends)), [f"{100 * end:g}" for end in ends])
    axes.set_yticks(range(len(begins)), [f"{100 * begin:g}" for begin in begins])
    axes.set(xlabel="end, % of the compute", ylabel="begin, % of the compute")
    return {"grid": figure}
