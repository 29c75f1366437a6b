"""Pruning before training up to 99.9%: random masks, SNIP, GraSP and SynFlow in a deep network."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxprune
from experiments.pai import masks, report
from experiments.pai.task import Network, of
from experiments.runner import images, training
from experiments.runner.api import Cell, Context, Experiment

SPARSITIES = (0.999, 0.99, 0.9, 0.998, 0.995, 0.98, 0.95, 0.8, 0.5)


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides the result of a cell."""

    method: str
    sparsity: float
    widths: tuple[int, ...] = (32, 64, 128, 256)  # two convolutions each
    epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    score_batches: int = 4
    score_batch_size: int = 256
    rounds: int = 100  # of SynFlow

    @property
    def common(self) -> tuple[Any, ...]:
        """Return what decides the programs: cells that share it share them."""
        return (self.widths, self.epochs, self.batch_size, self.learning_rate, self.weight_decay)


def run(settings: Settings, context: Context) -> dict[str, Any]:
    """Prune and train all seeds of one cell."""
    data = images.on_device(context)
    network = context.once("network", lambda: Network(context, settings.widths))
    per_epoch = len(data.train_labels) // settings.batch_size
    length = training.Length(
        per_epoch, settings.epochs, settings.batch_size, len(data.train_labels)
    )
    kept = _masks(settings, context, network, data)
    # One program for all cells: the masks are data to it.
    key = f"trainer {settings.common}"
    trainer = context.once(key, lambda: _trainer(settings, network, kept, length.steps))
    trained = training.checked(training.train(context, trainer, data, length, kept))
    live = training.live_weights(kept)
    lost = [sum(counts[i] == 0 for counts in live.values()) for i in range(len(context.seeds))]
    return {
        **{name: trained.last(name) for name in ("accuracy", "loss", "train_loss")},
        "sparsity": training.sparsity_of(kept),
        "live": live,
        "layers_lost": lost,
        "history": trained.history,
    }


def _masks(settings: Settings, context: Context, network: Network, data: images.Images) -> Any:
    """Return the masks [seeds, ...]."""
    given = context.once("given", lambda: _given(settings, context, network, data))
    if settings.method == "dense":
        shapes = jax.eval_shape(lambda params: jaxprune.make_masks(params, 0.0), given.params)
        return jax.tree.map(lambda mask: jnp.ones(mask.shape, mask.dtype), shapes)
    context.tell(0, settings.epochs, "masks")
    scorers = context.once("scorers", lambda: masks.Scorers(network))
    return masks.draw(
        settings.method, scorers, given, sparsity=settings.sparsity, rounds=settings.rounds
    )


def _given(
    settings: Settings, context: Context, network: Network, data: images.Images
) -> masks.Given:
    keys = jnp.stack([jax.random.key(seed) for seed in context.seeds])
    drawn = masks.batches(
        data,
        network,
        context.seeds,
        count=settings.score_batches,
        size=settings.score_batch_size,
    )
    return masks.Given(keys, jax.jit(jax.vmap(network.init))(keys), drawn)


def _trainer(settings: Settings, network: Network, kept: Any, steps: int) -> training.Trainer:
    rate = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, steps // 20, steps)
    inner = optax.adamw(rate, weight_decay=settings.weight_decay)
    of_first_seed = jax.tree.map(lambda mask: mask[0], kept)  # each seed's own take their place
    return training.Trainer(of(network), jaxprune.static(inner, of_first_seed))


def cells(quick: bool) -> list[Cell]:
    """Return the cells: dense training, and each method at each sparsity."""
    methods = list(masks.METHODS)
    if quick:
        brief: dict[str, Any] = {"widths": (8, 16), "epochs": 2, "batch_size": 64, "rounds": 4}
        brief |= {"score_batches": 2, "score_batch_size": 64}
        made = [Settings(method, 0.98, **brief) for method in methods]
        return [_cell(settings) for settings in (*made, Settings("dense", 0.0, **brief))]
    made = [Settings("dense", 0.0)]
    made += [Settings(method, sparsity) for sparsity in SPARSITIES for method in methods]
    return [_cell(settings) for settings in made]


def _cell(settings: Settings) -> Cell:
    name = settings.method
    if settings.sparsity:
        name = f"{settings.method}-{100 * settings.sparsity:g}"
    return Cell(name, dataclasses.asdict(settings), functools.partial(run, settings))


EXPERIMENT = Experiment(
    name="pai",
    about="Pruning before training in a network of eight convolutions on Fashion-MNIST",
    seeds=3,
    sources={images.NAME: images.fetch},
    cells=cells,
    section=report.section,
    figures=report.figures,
)
