"""Essential sparsity: how much of a pretrained model can go at once before its quality breaks."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune import allocation as allocations
from jaxprune._core.prunable import Where, default_where, select
from jaxprune.masks import prune as prune_once
from jaxprune.schedules import as_sparsity
from jaxprune.types import Tree

LEVELS = tuple(i / 10 for i in range(10))


class Essential(NamedTuple):
    """What a sweep found.

    Attributes:
      levels: the sparsities.
      scores: what was measured at each.
      threshold: the largest level up to which no score is more than the tolerance below the dense
        one.
      knee: the level, neither the first nor the last, at which the slope of the scores falls most.
    """

    levels: tuple[float, ...]
    scores: tuple[float, ...]
    threshold: float
    knee: float


def essential_sparsity(
    params: Tree,
    evaluate: Callable[[Tree], float],
    levels: Sequence[float] = LEVELS,
    *,
    tolerance: float = 0.01,
    prune: Callable[[Tree, float], Tree] | None = None,
    where: Where = default_where,
    done: Callable[[float, float], None] = lambda level, score: None,
) -> Essential:
    """Find the sparsity at which a pretrained model breaks, pruned once by magnitude.

    At each level the ``round(level · N)`` smallest of the N prunable weights are zeroed, in one
    ranking, from the dense model anew; no mask is trained. With scores ``c`` at levels ``s``,

    - threshold: ``max s_i`` with ``c_0 − c_j ≤ tolerance`` for all ``j ≤ i``;
    - knee: ``argmax_i (c_i − c_{i−1}) / (s_i − s_{i−1}) − (c_{i+1} − c_i) / (s_{i+1} − s_i)``.

    The paper reads the sharp drop off its curves, and works with 1% of a task's performance; it has
    no formula for it.

    Args:
      params: of the dense model, in any container.
      evaluate: ``params -> score``; higher is better. Of a language model ``−log(perplexity)`` is
        one, of which a tolerance of 0.01 is 1% of perplexity. It may fine-tune first, with the
        zeros held, as the paper does on downstream tasks.
      levels: sparsities, ascending from 0: three or more.
      tolerance: what may be lost, in the unit of the score.
      prune: ``(params, level) -> params`` in place of the one ranking, such as
        ``lambda p, s: jaxprune.prune(p, s)[0]`` for the same share of every matrix.
      where: which weights are ranked, as in `jaxprune.make_masks`; not read with ``prune``.
      done: is told each level and its score.

    Returns:
      Levels, scores, threshold and knee.

    Raises:
      ValueError: levels that do not ascend from 0 or are fewer than three, a tolerance below 0, a
        score that is not finite, or nothing selected.
      TypeError: a level that is not a number.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> params = {"kernel": jnp.array([[4.0, 0.01], [0.02, 3.0], [0.0, 0.03]])}
      >>> target = params["kernel"].round()
      >>> def evaluate(params):
      ...     return -jnp.abs(params["kernel"] - target).max()
      >>> found = posttraining.essential_sparsity(params, evaluate, [0, 1/6, 1/2, 2/3, 5/6])
      >>> round(found.threshold, 3), round(found.knee, 3)
      (0.667, 0.667)

    Reference:
      Jaiswal et al., The emergence of essential sparsity in large pre-trained models: the weights
      that matter, arXiv:2306.03805.
    """
    steps = _checked(levels, tolerance)
    chosen = select(params, where) if prune is None else {}
    size = sum(leaf.size for leaf in chosen.values())

    def ranked(params: Tree, level: float) -> Tree:
        # Rounded as the published code does, to the number that is pruned.
        share = round(level * size) / size
        return prune_once(params, share, allocation=allocations.global_(), where=where)[0]

    scores = []
    for level in steps:
        pruned = (ranked if prune is None else prune)(params, level) if level else params
        scores.append(_score(evaluate(pruned), level))
        done(level, scores[-1])
    return Essential(
        steps, tuple(scores), _threshold(steps, scores, tolerance), _knee(steps, scores)
    )


def _checked(levels: Sequence[float], tolerance: float) -> tuple[float, ...]:
    steps = tuple(float(as_sparsity("levels", level)) for level in levels)
    if len(steps) < 3 or steps[0] != 0.0 or any(np.diff(steps) <= 0):
        raise ValueError(
            f"levels must be three or more sparsities that ascend from 0, the dense model; got "
            f"{list(levels)}."
        )
    if not tolerance >= 0.0:
        raise ValueError(f"tolerance must be 0 or more, got {tolerance}: what may be lost.")
    return steps


def _score(found: Any, level: float) -> float:
    value = float(found)
    if not math.isfinite(value):
        raise ValueError(
            f"evaluate returned {value} at level {level:g}. Return a finite figure, such as a mean "
            "loss in place of a perplexity, or leave the level out."
        )
    return value


def _threshold(levels: Sequence[float], scores: Sequence[float], tolerance: float) -> float:
    held = levels[0]
    for level, score in zip(levels, scores, strict=True):
        if scores[0] - score > tolerance:
            break
        held = level
    return held


def _knee(levels: Sequence[float], scores: Sequence[float]) -> float:
    slopes = np.diff(scores) / np.diff(levels)
    return levels[1 + int(np.argmax(slopes[:-1] - slopes[1:]))]
