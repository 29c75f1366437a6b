"""Does progressive gradient flow train N:M better than SR-STE where the sparsity is high?"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import optax

from experiments.nm import report, tasks, text
from experiments.nm.methods import METHODS, phases
from experiments.runner import images, training
from experiments.runner.api import Cell, Context, Experiment
from jaxprune import NM

PATTERNS = ((1, 16), (1, 8), (1, 4), (2, 4))  # those of the claim first
RATES = (1e-3, 2e-3, 4e-3, 8e-3)  # tried on dense training


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides the result of a cell; dense without a method."""

    model: str
    learning_rate: float
    method: str | None = None
    n: int | None = None
    m: int | None = None
    steps: int = 1200
    chunks: int = 6
    batch_size: int = 128
    length: int = 0  # of a window of characters
    width: int = 128
    depth: int = 4
    heads: int = 4
    weight_decay: float = 0.05
    clip: float = 1.0  # of the norm of all gradients


# The rate that is best in dense training; the sparse cells take it as it is.
MODELS: Mapping[str, Settings] = {
    "vit": Settings("vit", 1e-3),
    "lm": Settings("lm", 4e-3, batch_size=64, length=128),
}
QUICK: Mapping[str, Any] = {
    "steps": 8,
    "chunks": 2,
    "batch_size": 8,
    "width": 32,  # the least that SdGf-Geometric can split for 1:4
    "depth": 1,
    "heads": 2,
}


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """Return AdamW with a cosine, wrapped if the cell is sparse."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.steps // 20, settings.steps
    )
    inner = optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.adamw(rate, weight_decay=settings.weight_decay),
    )
    if settings.method is None or settings.n is None or settings.m is None:
        return inner
    make = METHODS[settings.method]
    return make(inner, NM(settings.n, settings.m), phases(settings.steps))


def prepared(settings: Settings, context: Context) -> tasks.Prepared:
    """Return the model and its data."""
    shape = tasks.Shape(settings.width, settings.depth, settings.heads)
    if settings.model == "lm":
        return tasks.language(context, shape, settings.length)
    return tasks.vision(context, shape)


def run(settings: Settings, context: Context) -> dict[str, Any]:
    """Train all seeds of one cell; what is evaluated is the exported model, in its pattern."""
    task, data, examples = prepared(settings, context)
    length = training.Length(
        settings.steps // settings.chunks, settings.chunks, settings.batch_size, examples
    )
    trainer = training.Trainer(task, optimizer(settings))
    trained = training.train(context, trainer, data, length)
    if settings.method is not None:
        training.checked(trained)
    return {
        **{name: trained.last(name) for name in trained.history},
        "steps": length.steps,
        "history": trained.history,
    }


def cells(quick: bool) -> list[Cell]:
    """Return the cells: dense training at several rates, then each method in each pattern."""
    brief = QUICK if quick else {}
    patterns, rates = (((1, 4),), 1) if quick else (PATTERNS, len(RATES))
    made = []
    for model in MODELS.values():
        usual = dataclasses.replace(model, **brief)
        tried = sorted(RATES, key=lambda rate: rate != usual.learning_rate)[:rates]
        made += [dataclasses.replace(usual, learning_rate=rate) for rate in tried]
    for n, m in patterns:
        for model in MODELS.values():
            usual = dataclasses.replace(model, n=n, m=m, **brief)
            made += [dataclasses.replace(usual, method=method) for method in METHODS]
    return [_cell(settings) for settings in made]


def _cell(settings: Settings) -> Cell:
    way = f"dense-{settings.learning_rate:g}"
    if settings.method is not None:
        way = f"{settings.method}-{settings.n}-{settings.m}"
    name = f"{settings.model}-{way}"
    return Cell(name, dataclasses.asdict(settings), functools.partial(run, settings))


EXPERIMENT = Experiment(
    name="nm",
    about="N:M training of a vision transformer on Fashion-MNIST and of a decoder on Austen's "
    "novels: STE, SR-STE and the four variants of progressive gradient flow",
    seeds=3,
    sources={images.NAME: images.fetch, text.NAME: text.fetch},
    cells=cells,
    section=report.section,
    figures=report.figures,
)
