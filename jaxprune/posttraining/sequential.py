"""``prune_blocks``: one-shot pruning block after block, each on the output of the pruned ones.

The model is cut into its blocks (`Graph.segments`). For each block the statistics of its weights'
inputs are gathered over all batches, its weights are pruned, and the batches go through the pruned
block to become the inputs of the next. Blocks that do the same are compiled once. What is in memory
at a time is the model, the live activations, and the statistics of one block.
"""

import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._core.prunable import Where
from jaxprune._core.stacks import over_layers
from jaxprune.graph import Graph
from jaxprune.graph.matrix import Layout
from jaxprune.masks import MaskRule, Patterns
from jaxprune.posttraining._blocks import Blocks, Weight
from jaxprune.posttraining.matrix import Inputs, Method, Pruned, Target
from jaxprune.posttraining.owl import outlier_ratio
from jaxprune.schedules import as_sparsity
from jaxprune.scores.activation import wanda as wanda_scores
from jaxprune.types import Tree


class PrunedWeight(NamedTuple):
    """What became of one weight.

    Attributes:
      path: of the parameter.
      layer: which layer of it, if it stacks layers.
      weight: the pruned weight, in the parameter's own shape.
      mask: True = kept.
      sparsity: share of zeros.
      error: squared error of the weight's outputs over their square, with what is known of its
        inputs: their Gram matrix, its diagonal, or nothing.
      damping: what a solver added to the Gram matrix's diagonal, or None.
    """

    path: str
    layer: int | None
    weight: jax.Array
    mask: jax.Array
    sparsity: float
    error: float
    damping: float | None


class Block(NamedTuple):
    """What became of one block; enough to go on from it.

    Attributes:
      number: of the block, from 0, among those that have weights to prune.
      of: how many there are.
      weights: the block's pruned weights.
      seconds: time for it.
    """

    number: int
    of: int
    weights: tuple[PrunedWeight, ...]
    seconds: float


class Result(NamedTuple):
    """A pruned model."""

    params: Tree  # like the model's, pruned weights exactly zero
    masks: Tree  # True = kept; `optax.MaskedNode` where nothing was pruned
    blocks: tuple[Block, ...]


Share = float | Callable[[int], float]
"""A sparsity, or one for each block: ``number of the block -> sparsity``."""


def prune_blocks(
    graph: Graph,
    params: Tree,
    batches: Iterable[Any],
    method: Method,
    *,
    sparsity: Share | None = None,
    pattern: Patterns,
    where: Where | None = None,
    gradients: Tree | None = None,
    mask: Callable[..., jax.Array] | None = None,
    known: Callable[[int], Block | None] = lambda number: None,
    done: Callable[[Block], None] = lambda block: None,
) -> Result:
    """Prune a model block after block, on the activations of the pruned blocks before.

    Args:
      graph: of the model, `jaxprune.trace`.
      params: its parameters, in the container that was traced.
      batches: each a tuple of the model's inputs, or the only input; sequences along the first
        axis. All have the shapes that were traced.
      method: ``(weight, inputs, target) -> pruned`` of matrices, such as
        ``posttraining.wanda()``.
      sparsity: share of zeros of each weight, or a function of the block's number; None for the
        pattern's own.
      pattern: ``Unstructured()``, ``NM(n, m)``, or ``{path-regex: pattern}``. Groups run along the
        features of a weight's input, as the graph has them.
      where: which weights, as in `jaxprune.make_masks`. By default those of the repeated blocks:
        embeddings and the head are left.
      gradients: like ``params``, for methods that read them, from `jaxprune.scores.gradient_norm`.
      mask: ``(*inputs) -> bool array`` of the tokens that count, such as
        ``lambda tokens: tokens != padding``; its shape is the beginning of an input's. The others
        are in no statistic, and a sequence without one that counts is none. What padding does to
        other tokens inside the model is the model's own matter.
      known: returns a block that was pruned in a run before, or None.
      done: is told of every block as soon as it is pruned.

    Returns:
      The pruned parameters, the masks, and what became of each block.

    Raises:
      ValueError: no batch, a batch of other shapes, nothing to prune, a mask that does not fit or
        cannot be followed into a block, or activations or weights that are not finite, with the
        weight's path.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune
      >>> from jaxprune import posttraining
      >>> def model(params, x):
      ...     for layer in params:
      ...         x = x + jnp.tanh(x @ layer["kernel"])
      ...     return x
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = [{"kernel": jax.random.normal(key, (8, 8))} for key in keys]
      >>> batches = [jax.random.normal(jax.random.key(1), (4, 8))]
      >>> graph = jaxprune.trace(model, params, batches[0])
      >>> pruned = posttraining.prune_blocks(
      ...     graph, params, batches, posttraining.wanda(), sparsity=0.5,
      ...     pattern=jaxprune.Unstructured())
      >>> [int((layer["kernel"] == 0).sum()) for layer in pruned.params]
      [32, 32, 32]
    """
    needs = method.needs
    model = Blocks(graph, params, batches, where=where, needs=needs, gradients=gradients, mask=mask)
    rule, blocks = MaskRule(pattern), list[Block]()
    for index, segment in enumerate(model.segments):
        if segment in model.prunable:
            number = len(blocks)
            block = known(number)
            if block is None:
                start = time.perf_counter()
                share = sparsity(number) if callable(sparsity) else sparsity
                weights = model.weights(segment)
                targets = [_target(rule, weight, share) for weight in weights]
                some = _pruned(method, targets, weights, varies=callable(sparsity))
                seconds = time.perf_counter() - start
                block = Block(number, len(model.prunable), tuple(some), seconds)
                done(block)
            for one in block.weights:
                model.put((one.path, one.layer), one.weight, one.mask)
            blocks.append(block)
        model.forward(index)
    return Result(*model.result(), tuple(blocks))


def outlier_ratios(
    graph: Graph,
    params: Tree,
    batches: Iterable[Any],
    *,
    where: Where | None = None,
    multiple: float = 5.0,
    mask: Callable[..., jax.Array] | None = None,
) -> list[float]:
    """Return the share of outliers among the scores of each block of the dense model (OWL).

    Args:
      graph: of the model, `jaxprune.trace`.
      params: its parameters.
      batches: as in `prune_blocks`.
      where: as in `prune_blocks`.
      multiple: as in `outlier_ratio`.
      mask: as in `prune_blocks`.

    Returns:
      One number for each block that `prune_blocks` prunes, for `owl_sparsities`.

    Raises:
      ValueError: as in `prune_blocks`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune
      >>> from jaxprune import posttraining
      >>> def model(params, x):
      ...     for layer in params:
      ...         x = x + jnp.tanh(x @ layer["kernel"])
      ...     return x
      >>> params = [{"kernel": jnp.ones((8, 8))}, {"kernel": jnp.ones((8, 8)).at[0, 0].set(99.0)}]
      >>> batches = [jnp.ones((4, 8))]
      >>> graph = jaxprune.trace(model, params, batches[0])
      >>> posttraining.outlier_ratios(graph, params, batches)
      [0.0, 0.015625]

    Reference:
      Yin et al., Outlier weighed layerwise sparsity (OWL), arXiv:2310.05175.
    """
    model = Blocks(graph, params, batches, where=where, needs=("squares",), mask=mask)
    ratios = []
    for index, segment in enumerate(model.segments):
        if segment in model.prunable:
            scores = [_scores(weight) for weight in model.weights(segment)]
            ratios.append(float(_ratio(scores, multiple)))
        model.forward(index)
    return ratios


def _scores(weight: Weight) -> jax.Array:
    scores = over_layers(wanda_scores, len(weight.layout.lead))
    inputs = weight.inputs
    assert inputs.squares is not None
    return scores(weight.layout.matrix(weight.array), inputs.squares)


@functools.partial(jax.jit, static_argnums=1)
def _ratio(scores: list[jax.Array], multiple: float) -> jax.Array:
    return outlier_ratio(scores, multiple=multiple)


def _target(rule: MaskRule, weight: Weight, share: float | None) -> Target:
    path = weight.place[0]
    pattern: Any = rule.pattern_of(path)
    own = pattern.final_sparsity
    if share is None and own is None:
        raise ValueError(
            f"pattern={pattern!r} of {path!r} has no sparsity of its own: pass sparsity=."
        )
    return Target(own if own is not None else as_sparsity("sparsity", share), pattern)


def _pruned(
    method: Method, targets: Sequence[Target], weights: Sequence[Weight], *, varies: bool
) -> list[PrunedWeight]:
    """Prune the weights of a block: their matrices, each with its own inputs."""
    found = [
        _started(method, target, weight, varies=varies)
        for target, weight in zip(targets, weights, strict=True)
    ]
    # The device works on all of them before the host waits for the first number.
    numbers = jax.device_get([(zeros, error, one.damping) for one, zeros, error in found])
    some = []
    for weight, (one, *_), (zeros, error, damping) in zip(weights, found, numbers, strict=True):
        if not math.isfinite(error):
            raise ValueError(
                f"the error of {weight.place[0]!r} is {float(error)}: the weight, or what "
                f"{type(method).__name__} makes of it, has NaN or infinite values. Look at the "
                "weight; a solver may need more damping."
            )
        shown = (float(zeros), float(error), None if damping is None else float(damping))
        some.append(PrunedWeight(*weight.place, one.weight, one.mask, *shown))
    return some


def _started(
    method: Method, target: Target, weight: Weight, *, varies: bool
) -> tuple[Pruned, jax.Array, jax.Array]:
    # Blocks of different sparsity share a program that takes it as an argument, in float32; one
    # sparsity for all is exact.
    fixed = None if varies else target.sparsity
    compiled = _compiled(method, target.pattern, weight.layout, fixed)
    return compiled(weight.array, weight.inputs, np.float32(target.sparsity))


@functools.lru_cache(maxsize=64)
def _compiled(
    method: Method, pattern: Any, layout: Layout, fixed: float | None
) -> Callable[..., tuple[Pruned, jax.Array, jax.Array]]:
    """Compile ``(weight, inputs, sparsity) -> (pruned, sparsity, error)``."""

    def whole(weight: jax.Array, inputs: Inputs, share: Any) -> tuple[Pruned, jax.Array, jax.Array]:
        target = Target(share if fixed is None else fixed, pattern)

        def one(weight: jax.Array, inputs: Inputs) -> tuple[Pruned, jax.Array, jax.Array]:
            pruned = method(weight, inputs, target)
            return pruned, *_squared_error(weight, pruned.weight, inputs)

        mapped = over_layers(one, len(layout.lead))
        pruned, error, size = mapped(layout.matrix(weight), inputs)
        array, mask = layout.weight(pruned.weight), layout.weight(pruned.mask)
        damping = None if pruned.damping is None else jnp.max(pruned.damping)
        zeros = jnp.mean(array == 0, dtype=jnp.float32)
        error = jnp.sum(error) / jnp.maximum(jnp.sum(size), jnp.finfo(jnp.float32).tiny)
        return Pruned(array, mask, damping), zeros, error

    return jax.jit(whole)


def _squared_error(
    weight: jax.Array, pruned: jax.Array, inputs: Inputs
) -> tuple[jax.Array, jax.Array]:
    """Return the squared error of a weight's outputs and their square, with what is known."""

    def square(w: jax.Array) -> jax.Array:
        w = w.astype(jnp.float32)
        if inputs.gram is not None:
            return jnp.sum((inputs.gram @ w) * w)
        if inputs.squares is not None:
            return jnp.sum(inputs.squares[:, None] * w * w)
        return jnp.sum(w * w)

    return square(weight.astype(jnp.float32) - pruned.astype(jnp.float32)), square(weight)
