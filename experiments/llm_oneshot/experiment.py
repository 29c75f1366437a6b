"""SmolLM2-135M pruned in one shot, by method, pattern and allocation, and recovered."""

import dataclasses
import functools
from typing import Any

import jax

from experiments.llm_oneshot import model, report, text
from experiments.llm_oneshot.pruning import pruned
from experiments.llm_oneshot.retraining import recovered
from experiments.llm_oneshot.settings import METHODS, PATTERNS, RATES, RECOVERIES, Settings
from experiments.runner.api import Cell, Context, Experiment

FIRST = ("magnitude", "wanda", "sparsegpt")  # those of the first claims
OTHER_RATES = {"perp": 2e-3, "norms": 8e-3, "sft-ag": 4e-3, "sft-ma": 4e-3}
QUICK: dict[str, Any] = {
    "model": "tiny",
    "length": 16,
    "calibration_windows": 4,
    "calibration_batch": 2,
    "loss_windows": 2,
    "test_windows": 8,
    "test_batch": 4,
    "steps": 12,
    "chunks": 2,
    "entries": 400,
    "rank": 2,
    "alpha": 4.0,
}


def run(settings: Settings, context: Context) -> dict[str, Any]:
    """Prune the model once for each seed, retrain it if asked, and measure it."""
    seeds = context.seeds if settings.calibrated() else context.seeds[:1]
    found = [_one(settings, context, seed) for seed in seeds]
    # Where nothing is drawn, all seeds come to the same.
    found *= len(context.seeds) // len(found)
    return {name: [one[name] for one in found] for name in found[0]}


def _one(settings: Settings, context: Context, seed: int) -> dict[str, Any]:
    # A GPU would round products to 10 bits, and figures be compared with those of a CPU.
    with jax.default_matmul_precision("highest"):
        start = pruned(settings, context, seed)
    if settings.recovery is None:
        shares = {} if start.shares is None else {"shares": start.shares}
        return {**_measured(settings, context, start.params), **shares}
    with jax.default_matmul_precision("high"):
        trained = recovered(settings, context, seed, start)
    return {
        **_measured(settings, context, trained.params),
        "trained": trained.trained,
        "train_loss": trained.losses,
    }


def _measured(settings: Settings, context: Context, params: Any) -> dict[str, float]:
    with jax.default_matmul_precision("highest"):
        found = model.measured(settings, context, params)
    return {name: float(f"{value:.6g}") for name, value in found.items()}


def cells(quick: bool) -> list[Cell]:
    """Return the cells, those of the first claims first."""
    made = [Settings("dense")]
    made += [Settings(method, pattern) for pattern in PATTERNS[:2] for method in FIRST]
    made += [Settings(method, "60") for method in ("wanda", "sparsegpt")]
    made += [Settings("wanda", "60", each) for each in ("ecoflap", "owl", "mirrored")]
    made += [_retrained("wanda", pattern, kind) for pattern in PATTERNS[:2] for kind in RECOVERIES]
    made += [Settings("sparsegpt", "60", "owl")]
    all_ = [Settings(method, pattern) for pattern in PATTERNS for method in METHODS]
    made += [settings for settings in all_ if settings not in made]
    made += [_retrained("dense", None, kind) for kind in RECOVERIES]
    made += [_retrained("wanda", "60", kind) for kind in RECOVERIES]
    made += [
        dataclasses.replace(_retrained("wanda", "2-4", kind), learning_rate=rate)
        for kind, rate in OTHER_RATES.items()
    ]
    if quick:
        made = [dataclasses.replace(settings, **QUICK) for settings in made]
    return [_cell(settings) for settings in made]


def _retrained(method: str, pattern: str | None, kind: str) -> Settings:
    return Settings(method, pattern, recovery=kind, learning_rate=RATES[kind])


def _cell(settings: Settings) -> Cell:
    return Cell(settings.name, dataclasses.asdict(settings), functools.partial(run, settings))


EXPERIMENT = Experiment(
    name="llm_oneshot",
    about="SmolLM2-135M pruned in one shot, and retrained for 200 steps",
    seeds=3,
    sources={text.NAME: text.fetch},
    cells=cells,
    section=report.section,
    figures=report.figures,
)
