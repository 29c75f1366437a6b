"""A grid of start and end points of pruning, all with the same compute."""

import dataclasses
import functools
from typing import Any

import optax

import jaxprune
from experiments.runner import images, tasks, training
from experiments.runner.api import Cell, Context, Experiment
from experiments.schedules import report
from experiments.schedules.journey import Journey
from jaxprune.allocation import global_

STARTS = (0.25, 0.0, 0.125, 0.375, 0.5, 0.75)
ENDS = (0.75, 0.25, 0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides the result of a cell; without a begin and an end it is dense training."""

    begin: float | None = None
    end: float | None = None
    sparsity: float = 0.9
    compute: int = 1872  # in dense steps: four epochs
    every: int = 50  # steps between updates
    chunks: int = 10
    batch_size: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.1

    @property
    def journey(self) -> Journey | None:
        """Return the way from begin to end."""
        if self.begin is None or self.end is None:
            return None
        return Journey(self.begin, self.end, self.sparsity, self.compute, self.every)

    @property
    def steps_per_chunk(self) -> int:
        """Return the steps of a chunk; the last one may be some steps too long."""
        steps = self.compute if self.journey is None else self.journey.steps
        return -(-steps // self.chunks)


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """Return AdamW with a cosine over all steps, wrapped if anything is pruned."""
    steps = settings.steps_per_chunk * settings.chunks
    rate = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, steps // 20, steps)
    inner = optax.adamw(rate, weight_decay=settings.weight_decay)
    if (journey := settings.journey) is None:
        return inner
    return jaxprune.gradual(inner, journey.schedule, every=settings.every, allocation=global_())


def run(settings: Settings, context: Context) -> dict[str, Any]:
    """Train all seeds of one cell."""
    data = images.on_device(context)
    length = training.Length(
        settings.steps_per_chunk, settings.chunks, settings.batch_size, len(data.train_labels)
    )
    trainer = training.Trainer(tasks.fashion_cnn(context), optimizer(settings))
    trained = training.train(context, trainer, data, length)
    values: dict[str, Any] = {name: trained.last(name) for name in ("accuracy", "loss")}
    if (journey := settings.journey) is not None:
        masks = jaxprune.get_masks(training.checked(trained).opt_state)
        values["sparsity"] = training.sparsity_of(masks)
        values["window"] = [journey.schedule.begin, journey.schedule.end]
    compute = length.steps if journey is None else round(journey.spent(length.steps), 1)
    return {**values, "steps": length.steps, "compute": compute, "history": trained.history}


def cells(quick: bool) -> list[Cell]:
    """Return the cells: the published window first."""
    if quick:
        brief = {"sparsity": 0.9, "compute": 30, "every": 4, "chunks": 2, "batch_size": 64}
        windows = ((0.25, 0.75), (0.0, 0.5))
        return [_cell(Settings(b, e, **brief)) for b, e in windows]
    windows = [(begin, end) for begin in STARTS for end in ENDS if begin < end]
    return [*(_cell(Settings(b, e)) for b, e in windows), _cell(Settings())]


def _cell(settings: Settings) -> Cell:
    name = "dense"
    if settings.begin is not None and settings.end is not None:
        name = f"{100 * settings.begin:g}-{100 * settings.end:g}"
    return Cell(name, dataclasses.asdict(settings), functools.partial(run, settings))


EXPERIMENT = Experiment(
    name="schedules",
    about="When to begin and to end pruning, at equal compute: a CNN on Fashion-MNIST",
    seeds=3,
    sources={images.NAME: images.fetch},
    cells=cells,
    section=report.section,
    figures=report.figures,
)
