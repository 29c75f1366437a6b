"""One-shot pruning of all seeds' models, and what methods share: windows, gradients, sparsities."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.llm_oneshot import text
from experiments.llm_oneshot.model import WEIGHTS, dense, graph_of, weights_of
from experiments.llm_oneshot.settings import Settings
from experiments.runner.api import Context
from jaxprune import posttraining, scores
from jaxprune.posttraining import Block, Method

CALIBRATION = 1  # number of the use of windows

METHODS: Mapping[str, Callable[[], Method]] = {
    "magnitude": posttraining.magnitude,
    "wanda": posttraining.wanda,
    "ria": posttraining.ria,
    "sparsegpt": posttraining.sparsegpt,
    "gblm": posttraining.gblm,
    "admm": posttraining.admm,
}


class Pruned(NamedTuple):
    """A pruned model."""

    params: Any
    masks: Any  # by path; True = kept
    shares: list[float] | None  # sparsity of each block, where it differs


def pruned(settings: Settings, context: Context, seed: int) -> Pruned:
    """Return the pruned model of a seed; made once for all cells that retrain it."""
    key = f"pruned {settings.allocation} {settings.method} {settings.pattern} {seed}"
    return context.once(key, lambda: _pruned(settings, context, seed))


def _pruned(settings: Settings, context: Context, seed: int) -> Pruned:
    model = dense(settings, context)
    if settings.method == "dense":
        everything = {path: jnp.ones(w.shape, bool) for path, w in weights_of(model.params).items()}
        return Pruned(model.params, everything, None)
    method = METHODS[settings.method]()
    shares = _shares(settings, context, seed)

    def done(block: Block) -> None:
        context.tell(block.number + 1, block.of, f"seed {seed}, block")

    found = posttraining.prune_blocks(
        graph_of(settings, context),
        model.params,
        _batches(settings, context, seed),
        method,
        sparsity=settings.sparsity if shares is None else lambda number: shares[number],
        pattern=settings.kind,
        where=WEIGHTS,
        gradients=_gradients(settings, context, seed) if "gradient" in method.needs else None,
        done=done,
    )
    return Pruned(found.params, weights_of(found.masks), shares)


def _windows(settings: Settings, context: Context, seed: int) -> jax.Array:
    count, vocabulary = settings.calibration_windows, dense(settings, context).vocabulary
    found = text.drawn(
        context, seed, count=count, length=settings.length, vocabulary=vocabulary, use=CALIBRATION
    )
    return jnp.asarray(found)


def _batches(settings: Settings, context: Context, seed: int) -> list[jax.Array]:
    windows = _windows(settings, context, seed)
    size = settings.calibration_batch
    return [windows[at : at + size] for at in range(0, len(windows), size)]


def _gradients(settings: Settings, context: Context, seed: int) -> Any:
    def made() -> Any:
        model = dense(settings, context)
        windows = list(_windows(settings, context, seed))
        return scores.gradient_norm(model.loss_of_one, model.params, windows, where=WEIGHTS)

    return context.once(f"gradients {seed}", made)


def _shares(settings: Settings, context: Context, seed: int) -> list[float] | None:
    """Return the sparsity of each block, or None if it is the same."""
    if settings.allocation == "uniform":
        return None
    find = {"owl": _by_outliers, "mirrored": _mirrored, "ecoflap": _by_losses}[settings.allocation]
    key = f"shares {settings.allocation} {settings.sparsity} {seed}"
    found: np.ndarray = context.once(key, lambda: find(settings, context, seed))
    return [float(f"{share:.6g}") for share in found]


def _by_outliers(settings: Settings, context: Context, seed: int) -> np.ndarray:
    batches, params = _batches(settings, context, seed), dense(settings, context).params
    graph = graph_of(settings, context)
    ratios = posttraining.outlier_ratios(graph, params, batches, where=WEIGHTS)
    return posttraining.owl_sparsities(ratios, settings.sparsity)


def _mirrored(settings: Settings, context: Context, seed: int) -> np.ndarray:
    """Return OWL's sparsities turned round: most where there are most outliers."""
    return 2 * settings.sparsity - _by_outliers(settings, context, seed)


def _by_losses(settings: Settings, context: Context, seed: int) -> np.ndarray:
    model = dense(settings, context)
    windows = list(_windows(settings, context, seed)[: settings.loss_windows])
    found = posttraining.ecoflap_scores(
        graph_of(settings, context),
        model.params,
        windows,
        model.loss_of_one,
        seed=seed,
        where=WEIGHTS,
        progress=lambda done, of: context.tell(done, of, f"seed {seed}, scored"),
    )
    return posttraining.ecoflap_sparsities(found.scores, found.sizes, settings.sparsity)
