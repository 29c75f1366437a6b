"""ECoFLaP's run: scores of all blocks from forward passes, sparsities by them, a local method."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._core import paths
from jaxprune._core.prunable import Where
from jaxprune.graph import Graph
from jaxprune.patterns import Unstructured
from jaxprune.posttraining._blocks import Leaves, Place, places_of
from jaxprune.posttraining.ecoflap import (
    ecoflap_sparsities,
    perturbed,
    weighted_gradient,
    zeroth_order,
)
from jaxprune.posttraining.matrix import Method
from jaxprune.posttraining.sequential import Result, prune_blocks
from jaxprune.posttraining.wanda import wanda
from jaxprune.types import Tree

Loss = Callable[[Tree, Any], jax.Array]
Progress = Callable[[int, int], None]


class BlockScores(NamedTuple):
    """What `ecoflap_sparsities` divides a sparsity by, a number for each block."""

    scores: np.ndarray  # (blocks,) float64
    sizes: np.ndarray  # (blocks,) int64, numbers of weights


def ecoflap_scores(
    graph: Graph,
    params: Tree,
    batches: Iterable[Any],
    loss_fn: Loss,
    *,
    seed: int = 0,
    eps: float = 1e-3,
    power: int = 0,
    average: bool = False,
    where: Where | None = None,
    progress: Progress = lambda done, of: None,
    known: Sequence[float] = (),
    done: Callable[[float], None] = lambda score: None,
) -> BlockScores:
    """Score every block by how the loss changes when its weights move, one weight at a time.

    ``score = Σ_W Σ_b |L_b(W + eps · z) − L_b(W − eps · z)| / (2 eps)`` over the weights of the
    block and the batches, with a direction z of its own for each: forward passes alone, two for
    each weight and batch, with one compilation of the loss. The losses differ in their last digits:
    compute the loss in float32.

    Args:
      graph: of the model, `jaxprune.trace`; it says which weights make a block.
      params: its parameters, dense.
      batches: each a batch of ``loss_fn``. The published runs take 32 to 128 single samples.
      loss_fn: ``(params, batch) -> loss``, a scalar and the mean over the batch; pure, since it is
        compiled once.
      seed: of the directions.
      eps: length of a step, as in `perturbed`.
      power: as in `weighted_gradient`; the published runs use 0.
      average: divide a block's score by its number of weights.
      where: which weights, as in `prune_blocks`.
      progress: called after each weight with the weights done and their number.
      known: what ``done`` was told in a run before, of the first blocks.
      done: is told the score of each block, not averaged, as soon as it is there.

    Returns:
      Scores and sizes of the blocks that `prune_blocks` prunes, in its order.

    Raises:
      ValueError: no batch, nothing to prune, a loss that is no scalar, or one that is not finite.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune
      >>> from jaxprune import posttraining
      >>> def model(params, x):
      ...     for layer in params:
      ...         x = x + jnp.tanh(x @ layer["kernel"])
      ...     return x
      >>> params = [{"kernel": jnp.zeros((4, 4))}, {"kernel": 9.0 * jnp.eye(4)}]  # one saturates
      >>> x = jnp.ones((2, 4))
      >>> graph = jaxprune.trace(model, params, x)
      >>> found = posttraining.ecoflap_scores(
      ...     graph, params, [x, 2 * x], lambda params, x: jnp.mean(model(params, x) ** 2))
      >>> bool(found.scores[0] > 100 * found.scores[1]), found.sizes.tolist()
      (True, [16, 16])

    Reference:
      Sung et al., ECoFLaP: efficient coarse-to-fine layer-wise pruning for vision-language models,
      arXiv:2310.02998.
    """
    some = list(batches)
    if not some:
        raise ValueError("batches is empty. Give at least one batch of loss_fn.")
    blocks, leaves = places_of(graph, params, where), dict(paths.flatten(params))
    of, keys = sum(map(len, blocks)), jax.random.key(seed)
    scores = [float(score) for score in known[: len(blocks)]]
    finished = sum(map(len, blocks[: len(scores)]))
    for places in blocks[len(scores) :]:
        score = 0.0
        for place in places:
            key = jax.random.fold_in(keys, finished)
            slope = _slope(loss_fn, params, place, some, key, eps)
            score += float(jnp.sum(weighted_gradient(_weight(leaves, place), slope, power=power)))
            finished += 1
            progress(finished, of)
        scores.append(score)
        done(score)
    sizes = np.array([sum(_weight(leaves, place).size for place in places) for places in blocks])
    return BlockScores(np.array(scores) / sizes if average else np.array(scores), sizes)


def prune_ecoflap(
    graph: Graph,
    params: Tree,
    batches: Iterable[Any],
    loss_fn: Loss,
    *,
    sparsity: float,
    method: Method | None = None,
    max_sparsity: float | None = None,
    loss_batches: Iterable[Any] | None = None,
    gradients: Tree | None = None,
    mask: Callable[..., jax.Array] | None = None,
    where: Where | None = None,
    seed: int = 0,
    eps: float = 1e-3,
    average: bool = False,
) -> Result:
    """Divide a sparsity among the blocks by zeroth-order scores, and prune them (ECoFLaP).

    `ecoflap_scores` of the dense model, `ecoflap_sparsities` of these, and `prune_blocks` with a
    local method at the sparsity of each block.

    Args:
      graph: of the model, `jaxprune.trace`.
      params: its parameters.
      batches: inputs of the model, as in `prune_blocks`.
      loss_fn: ``(params, batch) -> loss``, as in `ecoflap_scores`.
      sparsity: share of zeros among the weights of all blocks.
      method: what prunes a block's weights; None for ``wanda()``, as published.
      max_sparsity: the most of any block, as in `ecoflap_sparsities`.
      loss_batches: batches of ``loss_fn``; None for ``batches``.
      gradients: as in `prune_blocks`.
      mask: as in `prune_blocks`.
      where: as in `prune_blocks`.
      seed: as in `ecoflap_scores`.
      eps: as in `ecoflap_scores`.
      average: as in `ecoflap_scores`.

    Returns:
      The pruned parameters, the masks, and what became of each block.

    Raises:
      ValueError: as in the three functions.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune
      >>> from jaxprune import posttraining
      >>> def model(params, x):
      ...     for layer in params:
      ...         x = x + jnp.tanh(x @ layer["kernel"])
      ...     return x
      >>> params = [{"kernel": jnp.zeros((8, 8))}, {"kernel": 9.0 * jnp.eye(8)}]  # one saturates
      >>> x = jnp.ones((2, 8))
      >>> pruned = posttraining.prune_ecoflap(
      ...     jaxprune.trace(model, params, x), params, [x],
      ...     lambda params, x: jnp.mean(model(params, x) ** 2), sparsity=0.5, max_sparsity=0.75,
      ...     method=posttraining.magnitude())
      >>> [int(mask["kernel"].sum()) for mask in pruned.masks]  # kept, of 64
      [48, 16]

    Reference:
      Sung et al., ECoFLaP: efficient coarse-to-fine layer-wise pruning for vision-language models,
      arXiv:2310.02998.
    """
    inputs = list(batches)
    scored = inputs if loss_batches is None else loss_batches
    found = ecoflap_scores(
        graph, params, scored, loss_fn, seed=seed, eps=eps, average=average, where=where
    )
    shares = ecoflap_sparsities(found.scores, found.sizes, sparsity, max_sparsity=max_sparsity)
    return prune_blocks(
        graph, params, inputs, wanda() if method is None else method,
        sparsity=lambda number: float(shares[number]), pattern=Unstructured(), where=where,
        gradients=gradients, mask=mask,
    )  # fmt: skip


def _weight(leaves: Leaves, place: Place) -> jax.Array:
    path, layer = place
    return jnp.asarray(leaves[path] if layer is None else leaves[path][layer])


def _slope(
    loss_fn: Loss, params: Tree, place: Place, batches: list[Any], key: jax.Array, eps: float
) -> jax.Array:
    """Return the size of the loss's gradient along random directions of one weight."""
    path, layer = place
    leaf = paths.flatten(params)[path]
    ends = []
    for number, batch in enumerate(batches):
        moved = _moved(leaf, layer, jax.random.fold_in(key, number), eps)
        ends.append([_loss(loss_fn, paths.refill(params, {path: m}, _own), batch) for m in moved])
    losses = jnp.asarray(ends)
    if not bool(jnp.all(jnp.isfinite(losses))):
        raise ValueError(
            f"loss_fn is not finite where {path!r} was moved by eps={eps}. Look at the loss, the "
            "batches and the weights."
        )
    return zeroth_order(losses[:, 0], losses[:, 1], eps=eps)


def _own(path: str, leaf: Any) -> Any:
    del path
    return leaf


@functools.partial(jax.jit, static_argnums=3)
def _moved(
    leaf: jax.Array, layer: int | None, key: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array]:
    """Return a parameter, one layer of which was moved forth and back."""
    if layer is None:
        return perturbed(leaf, key, eps=eps)
    plus, minus = perturbed(leaf[layer], key, eps=eps)
    return leaf.at[layer].set(plus), leaf.at[layer].set(minus)


@functools.partial(jax.jit, static_argnums=0)
def _loss(loss_fn: Loss, params: Tree, batch: Any) -> jax.Array:
    found = loss_fn(params, batch)
    if jnp.shape(found) != ():
        raise ValueError(
            f"loss_fn must return one number, got shape {jnp.shape(found)}. Take the mean over the "
            "batch."
        )
    return jnp.asarray(found, jnp.float32)
