"""Which way of training sparse is best? Static, SET, RigL, GraNet, gradual and dense."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

import jaxprune
from experiments.dst import report
from experiments.runner import images, tasks, training
from experiments.runner.api import Cell, Context, Experiment
from jaxprune import initial
from jaxprune.allocation import erdos_renyi_kernel
from jaxprune.transforms import moments

SPARSITIES = (0.9, 0.95, 0.98)
GRANET_STARTS = 0.5  # its first sparsity, as published for sparse-to-sparse training
ALLOCATION = erdos_renyi_kernel


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides the result of a cell."""

    method: str
    sparsity: float
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    every: int = 100  # steps between changes of masks
    drop: float = 0.3  # share of the live weights that the first change replaces


Make = Callable[[optax.GradientTransformation, Settings, int], optax.GradientTransformation]


def static(inner: optax.GradientTransformation, s: Settings, steps: int) -> Any:
    """Train with the first masks: the masks that stand here are replaced by those of each seed."""
    del steps

    def init(params: Any) -> Any:
        masks = jaxprune.make_masks(params, s.sparsity, allocation=ALLOCATION)
        return jaxprune.static(inner, masks).init(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return jaxprune.static(inner, state.masks).update(updates, state, params)

    return optax.GradientTransformation(init, update)


def set_training(inner: optax.GradientTransformation, s: Settings, steps: int) -> Any:
    """Drop by magnitude and grow at random."""
    end = steps * 3 // 4
    drop = jaxprune.transforms.cosine_drop(s.drop, end)
    return jaxprune.set_training(
        inner,
        s.sparsity,
        end=end,
        every=s.every,
        drop=drop,
        allocation=ALLOCATION,
        moments=moments.fresh,
    )


def rigl(
    inner: optax.GradientTransformation, s: Settings, steps: int, *, rule: Any = moments.fresh
) -> Any:
    """Drop by magnitude and grow by the gradient."""
    end = steps * 3 // 4
    return jaxprune.rigl(inner, s.sparsity, end=end, every=s.every, drop=s.drop, moments=rule)


def granet(inner: optax.GradientTransformation, s: Settings, steps: int) -> Any:
    """Prune from half the weights in the first half of training, and regenerate."""
    rise = jaxprune.schedules.cubic(GRANET_STARTS, s.sparsity, begin=s.every, end=steps // 2)
    end = steps * 3 // 4
    return jaxprune.granet(inner, rise, end=end, every=s.every, moments=moments.fresh)


def gradual(inner: optax.GradientTransformation, s: Settings, steps: int) -> Any:
    """Prune from dense, between 20% and 70% of training."""
    rise = jaxprune.schedules.cubic(0.0, s.sparsity, begin=steps // 5, end=steps * 7 // 10)
    return jaxprune.gradual(inner, rise, every=s.every, allocation=ALLOCATION)


METHODS: Mapping[str, Make] = {
    "static": static,
    "set": set_training,
    "rigl": rigl,
    "rigl-mean": functools.partial(rigl, rule=moments.mean_of_live),
    "granet": granet,
    "gradual": gradual,
    "dense": lambda inner, s, steps: inner,
}
# The sparsity of the random masks at the start, where there are any.
FIRST_MASKS: Mapping[str, Callable[[Settings], float]] = {
    **dict.fromkeys(("static", "set", "rigl", "rigl-mean"), lambda s: s.sparsity),
    "granet": lambda s: GRANET_STARTS,
}


def run(settings: Settings, context: Context) -> dict[str, Any]:
    """Train all seeds of one cell."""
    data, task = images.on_device(context), tasks.fashion_cnn(context)
    per_epoch = len(data.train_labels) // settings.batch_size
    length = training.Length(
        per_epoch, settings.epochs, settings.batch_size, len(data.train_labels)
    )
    rate = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, length.steps // 20, length.steps
    )
    inner = optax.adamw(rate, weight_decay=settings.weight_decay)
    tx = METHODS[settings.method](inner, settings, length.steps)
    trainer = training.Trainer(task, tx)
    trained = training.train(context, trainer, data, length, _first_masks(context, settings))
    values = {name: trained.last(name) for name in ("accuracy", "loss", "train_loss")}
    sparse = training.is_sparse(trained.opt_state)
    masks = jaxprune.get_masks(training.checked(trained).opt_state) if sparse else None
    return {
        **values,
        "sparsity": training.sparsity_of(masks) if sparse else [0.0] * len(context.seeds),
        "live": training.live_weights(masks) if sparse else {},
        "steps": length.steps,
        "history": trained.history,
    }


def _first_masks(context: Context, settings: Settings) -> Any:
    """Return random masks of each seed, where the method begins with some."""
    if settings.method not in FIRST_MASKS:
        return None
    sparsity = FIRST_MASKS[settings.method](settings)

    def draw(key: jax.Array) -> Any:
        params = task.init(key)
        chance = jax.random.fold_in(key, 1)
        return initial.random_masks(params, sparsity, chance, allocation=ALLOCATION)

    task = tasks.fashion_cnn(context)
    keys = jax.numpy.stack([jax.random.key(seed) for seed in context.seeds])
    return context.once(f"masks {sparsity}", lambda: jax.jit(jax.vmap(draw))(keys))


def cells(quick: bool) -> list[Cell]:
    """Return the cells: each method at each sparsity, then what trains five times longer."""
    if quick:
        levels = {"dense": 0.0}
        brief: dict[str, Any] = {"epochs": 6, "batch_size": 64, "every": 4}
        return [_cell(Settings(m, levels.get(m, 0.95), **brief)) for m in METHODS]
    sparse = [name for name in METHODS if name != "dense"]
    usual = [Settings("dense", 0.0)]
    usual += [Settings(name, sparsity) for sparsity in SPARSITIES[::-1] for name in sparse]
    longer = [Settings("dense", 0.0)]
    longer += [Settings(name, 0.98) for name in sparse if name != "rigl-mean"]
    longer += [Settings(name, 0.9) for name in ("static", "set", "rigl", "granet")]
    longer = [dataclasses.replace(settings, epochs=50) for settings in longer]
    return [*map(_cell, usual), *(_cell(settings, "-x5") for settings in longer)]


def _cell(settings: Settings, suffix: str = "") -> Cell:
    level = f"-{round(100 * settings.sparsity)}" if settings.sparsity else ""
    name = f"{settings.method}{level}{suffix}"
    return Cell(name, dataclasses.asdict(settings), functools.partial(run, settings))


EXPERIMENT = Experiment(
    name="dst",
    about="Dynamic sparse training of a CNN on Fashion-MNIST, against static masks, gradual "
    "pruning and dense training",
    seeds=5,
    sources={images.NAME: images.fetch},
    cells=cells,
    section=report.section,
    figures=report.figures,
)
