"""What the runs came to: a table for the terminal, a plot, and a JSON file with everything."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

import jaxprune
from experiments.data import Dataset
from experiments.quickstart.settings import Settings, write_atomically
from experiments.quickstart.timing import StepTime
from jaxprune.types import Pattern

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


class Outcome(NamedTuple):
    """The figures of one run."""

    name: str
    seed: int
    accuracy: float  # share of the test images
    sparsity: float  # share of zeros among the prunable weights
    kept: int  # parameters that are not pruned, biases included
    parameters: int
    dense_bytes: int  # of the parameters in a checkpoint
    compressed_bytes: int  # the same in the smallest format that applies to each weight
    seconds: float | None = None  # of training; None for what was not trained
    history: Mapping[str, Any] | None = None


def outcome(
    name: str, seed: int, state: Mapping[str, Any], accuracy: float, pattern: Pattern | None
) -> Outcome:
    """Gather the figures of one run from its parameters, masks and, if trained, its history."""
    figures = jaxprune.summary(state["params"], state["masks"], pattern=pattern, print_table=False)
    if not figures.total.holds:
        raise AssertionError(f"{name}: pruned weights are not zero, or not in their pattern")
    history = state.get("history")
    return Outcome(
        name=name,
        seed=seed,
        accuracy=accuracy,
        sparsity=figures.total.sparsity,
        kept=figures.model.kept,
        parameters=figures.model.size,
        dense_bytes=figures.model.dense_bytes,
        compressed_bytes=figures.model.compressed_bytes,
        seconds=None if history is None else float(history.seconds.sum()),
        history=None if history is None else {k: v.tolist() for k, v in history._asdict().items()},
    )


def print_source(console: Console, asked: str, dataset: Dataset, seconds: float) -> None:
    """Say where the data came from, loudly if it is not what was asked for."""
    console.print(
        f"[bold]{dataset.name}[/]: {len(dataset.train_images):,} training and "
        f"{len(dataset.test_images):,} test images from {dataset.source}, in {seconds:.1f} s "
        f"(sha256 {dataset.sha256[:12]}...)"
    )
    if dataset.name != asked:
        tried = "\n".join(f"{source}: {reason}" for source, reason in dataset.passed_over)
        title = f"{asked.upper()} IS NOT TO BE HAD HERE; {dataset.name.upper()} STANDS IN FOR IT"
        console.print(Panel(tried, title=f"[bold red]{title}[/]", border_style="red"))


def publish(
    console: Console,
    settings: Settings,
    dataset: Dataset,
    outcomes: Sequence[Outcome],
    times: Mapping[str, StepTime],
    seconds: float,
) -> None:
    """Print the table; write the plot and the report beside the checkpoints."""
    size = f"{outcomes[0].parameters:,} parameters"
    console.print(table(outcomes, times, f"{dataset.name}, {settings.epochs} epochs, {size}"))
    plot(outcomes, settings.out / "quickstart.png")
    content = {
        "settings": settings.decisive() | {"seed": settings.seed, "seeds": settings.seeds},
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "sha256": dataset.sha256,
            "passed_over": [attempt._asdict() for attempt in dataset.passed_over],
        },
        "machine": machine(),
        "seconds": seconds,
        "runs": [run._asdict() for run in outcomes],
        "step_times": {name: taken._asdict() for name, taken in times.items()},
    }
    write_atomically(settings.out / "report.json", json.dumps(content, indent=2))
    console.print(f"{seconds:.0f} s in all; report, plot and checkpoints are in {settings.out}")


def table(outcomes: Sequence[Outcome], times: Mapping[str, StepTime], title: str) -> Table:
    """Return the table: a row per run, as mean and standard deviation over the seeds."""
    made = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column("run", no_wrap=True)
    for name in ("accuracy", "sparsity", "kept", "dense", "compressed", "step time"):
        made.add_column(name, justify="right", no_wrap=True)
    for name, runs in by_name(outcomes).items():
        first = runs[0]  # all seeds have the same shapes and counts
        made.add_row(
            name,
            spread([100 * run.accuracy for run in runs]),
            f"{first.sparsity:.1%}",
            f"{first.kept:,}",
            f"{first.dense_bytes / 1e3:,.0f} kB",
            f"{first.compressed_bytes / 1e3:,.0f} kB",
            f"{times[name].ratio:.2f}x" if name in times else "-",
        )
    return made


def by_name(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Group the runs by name, in the order in which names first appear."""
    groups: dict[str, list[Outcome]] = {}
    for run in outcomes:
        groups.setdefault(run.name, []).append(run)
    return groups


def spread(values: Sequence[float]) -> str:
    """Write a mean, with the standard deviation of the sample if there are several values."""
    if len(values) == 1:
        return f"{values[0]:.2f}%"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}%"


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw accuracy against sparsity, and sparsity over time."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, runs in by_name(outcomes).items():
        accuracies = [100 * run.accuracy for run in runs]
        error = np.std(accuracies, ddof=1) if len(runs) > 1 else 0.0
        (drawn, *_) = left.errorbar(
            100 * runs[0].sparsity, np.mean(accuracies), error, fmt="o", capsize=3, label=name
        )
        history = runs[0].history
        if history is not None:
            sparsity = 100 * np.asarray(history["sparsity"])
            epochs = np.arange(1, sparsity.size + 1) / sparsity.shape[1]
            right.plot(epochs, sparsity.ravel(), color=drawn.get_color(), label=name)
    left.set(xlabel="sparsity (%)", ylabel="test accuracy (%)")
    right.set(xlabel="epoch", ylabel="sparsity (%)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend()
    figure.savefig(path, dpi=150)


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
