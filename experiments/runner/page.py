"""Write docs/experiments.md and its figures from the stored results."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

from experiments.runner import store
from experiments.runner.api import Claim, Experiment, Results

PAGE = Path(__file__).parents[2] / "docs" / "experiments.md"
PREFIX = "experiments-"

HEAD = """\
# Experiments

Published claims, put to the test at a small scale: each is stated beside what was measured, with a
verdict that is computed from the numbers. Figures are mean ± standard deviation over seeds. One
mean is *above* another where they differ by more than two standard errors; otherwise the two are
*within noise*. A claim that does not hold here may hold at its own scale.

The results are in `experiments/results`, a file for each cell, and `python -m experiments report`
writes this page from them.
"""

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "jaxprune",
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table: first column to the left, the others to the right."""
    aligned = ["---" if i == 0 else "---:" for i in range(len(header))]
    return _lines([header, aligned, *rows])


def claims(made: Sequence[Claim]) -> str:
    """Write the table of claims."""
    rows = [(f"{c.published} ({c.source})", c.measured, f"**{c.verdict}**") for c in made]
    return _lines([("published", "measured", "verdict"), ("---",) * 3, *rows])


def image(name: str, alt: str) -> str:
    """Write the line that shows a figure, named ``<experiment>-<figure>``."""
    return f"![{alt}](figures/{PREFIX}{name}.svg)\n"


def provenance(results: Results) -> str:
    """Say with which command, on how many seeds and where results came about."""
    origins: dict[tuple[str, str, str, int], list[str]] = {}
    for name, result in results.items():
        key = (result.command, result.device, result.jax, len(result.seeds))
        origins.setdefault(key, []).append(name)
    lines = []
    for (command, device, jax, seeds), names in origins.items():
        cells = f"{len(names)} cell" + "s" * (len(names) > 1)
        of_seeds = f"{seeds} seed" + "s" * (seeds > 1)
        lines.append(f"`{command}`: {cells}, {of_seeds} each, on {device} (jax {jax}).")
    return "\n".join(lines) + "\n"


def text(found: Iterable[tuple[Experiment, Results]]) -> str:
    """Return the text of the page; an experiment without results is left out."""
    parts = [HEAD]
    for experiment, results in found:
        if results:
            heading = f"## {experiment.name}\n\n{experiment.about}.\n"
            parts += [heading, provenance(results), experiment.section(results).strip() + "\n"]
    return "\n".join(parts)


def write(found: Sequence[tuple[Experiment, Results]], page: Path = PAGE) -> None:
    """Write the page, and its figures beside it."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text(found))
    folder = page.parent / "figures"
    folder.mkdir(exist_ok=True)
    mpl.use("agg")
    with mpl.rc_context(STYLE):  # pyright: ignore[reportArgumentType]
        for experiment, results in found:
            for name, figure in experiment.figures(results).items() if results else ():
                target = folder / f"{PREFIX}{experiment.name}-{name}.svg"
                figure.savefig(target, metadata={"Date": None})


def load(experiments: Sequence[Experiment], folder: Path) -> list[tuple[Experiment, Results]]:
    """Read the results of experiments."""
    return [(experiment, store.load(folder / experiment.name)) for experiment in experiments]


def joined(items: Mapping[str, str]) -> str:
    """Write labelled values on one line."""
    return "; ".join(f"{label}: {value}" for label, value in items.items())


def _lines(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
