"""What a run computes of the dense model before it prunes: gradients, and sparsities of blocks."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console

from jaxprune import posttraining, scores
from jaxprune.cli.folder import Folder
from jaxprune.cli.progress import bar_of
from jaxprune.cli.run import BLOCKS, Run
from jaxprune.graph import Graph
from jaxprune.types import Tree

Loss = Callable[[Tree, jax.Array], jax.Array]


def loss_of(fn: Callable[[Tree, jax.Array], jax.Array]) -> Loss:
    """Return the mean loss of a model on one window, ``(params, window) -> loss``."""

    def loss(params: Tree, window: jax.Array) -> jax.Array:
        logits = fn(params, window[None])[0, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, window[1:]).mean()

    return loss


def gradients_of(run: Run, graph: Graph, params: Tree, loss: Loss) -> Tree:
    """Return what a method reads in the place of gradients."""
    windows = list(jax.numpy.asarray(run.calibration))
    if run.general is None:
        return scores.gradient_norm(loss, params, windows, where=BLOCKS)
    return posttraining.dpruner_scores(
        graph, params, windows, run.batches(run.general), loss, rate=run.rate, where=BLOCKS
    )


def shares_of(
    run: Run, graph: Graph, params: Tree, loss: Loss, folder: Folder, console: Console
) -> float | Callable[[int], float]:
    """Return the sparsity, or that of each block, which is kept in the folder once computed."""
    if run.allocation == "uniform":
        return run.sparsity
    found = folder.kept("shares")
    if found is None:
        start = time.perf_counter()
        divide = {"owl": _by_outliers, "ecoflap": _by_losses}[run.allocation]
        found = [float(share) for share in divide(run, graph, params, loss, folder, console)]
        folder.keep("shares", found)
        seconds = time.perf_counter() - start
        console.print(f"{run.allocation} allocation in {seconds:.1f} s", highlight=False)
    shares = found
    return lambda number: shares[number]


def _by_outliers(
    run: Run, graph: Graph, params: Tree, loss: Loss, folder: Folder, console: Console
) -> np.ndarray[Any, Any]:
    del loss, folder, console
    batches = run.batches(run.calibration)
    ratios = posttraining.outlier_ratios(graph, params, batches, where=BLOCKS)
    return posttraining.owl_sparsities(ratios, run.sparsity)


def _by_losses(
    run: Run, graph: Graph, params: Tree, loss: Loss, folder: Folder, console: Console
) -> np.ndarray[Any, Any]:
    """Score block after block; a run that was stopped has lost the scores of one."""
    known = folder.kept("scores") or []

    def done(score: float) -> None:
        known.append(score)
        folder.keep("scores", known)

    windows = list(jax.numpy.asarray(run.calibration))
    with bar_of(console) as bar:
        task = bar.add_task("ecoflap, weight", total=None)
        found = posttraining.ecoflap_scores(
            graph, params, windows, loss, seed=run.seed, where=BLOCKS,
            known=tuple(known), done=done,
            progress=lambda done, of: bar.update(task, completed=done, total=of),
        )  # fmt: skip
    return posttraining.ecoflap_sparsities(found.scores, found.sizes, run.sparsity)
