"""Prune before training in rounds: score what is left, prune a little more, and again."""

import itertools
import operator
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import allocation as allocations
from jaxprune._core import paths
from jaxprune._core.prunable import Where, default_where, select
from jaxprune._core.select import refuse_nan
from jaxprune.masks import MaskRule, Patterns, check_target, selected_tree
from jaxprune.patterns import Unstructured
from jaxprune.schedules import as_sparsity
from jaxprune.types import Allocation, Tree

Course = Callable[[float, int, int], float]
"""``(sparsity, round, rounds) -> sparsity`` after a round, counted from 1."""

_RANKED = allocations.global_()


def exponential(sparsity: float, round: int, rounds: int) -> float:
    """Prune the same share of what is left in each round.

    ``1 − (1 − sparsity)^(round / rounds)``

    Args:
      sparsity: share of zeros after the last round, in [0, 1).
      round: number of the round, counted from 1.
      rounds: how many there are.

    Returns:
      The share of zeros after the round.

    Example:
      >>> from jaxprune import initial
      >>> [round(initial.exponential(0.99, k, 2), 4) for k in (1, 2)]
      [0.9, 0.99]

    Reference:
      Tanaka et al., arXiv:2006.05467, algorithm 1; de Jorge et al., arXiv:2006.09081, section 4.
    """
    # The last round is exact, whatever the power of float64 makes of it.
    return sparsity if round == rounds else 1.0 - (1.0 - sparsity) ** (round / rounds)


def linear(sparsity: float, round: int, rounds: int) -> float:
    """Prune the same share of all weights in each round.

    ``sparsity · round / rounds``. At high sparsity the last rounds prune most of what is left;
    layers can then be lost as a whole.

    Args:
      sparsity: share of zeros after the last round, in [0, 1).
      round: number of the round, counted from 1.
      rounds: how many there are.

    Returns:
      The share of zeros after the round.

    Example:
      >>> from jaxprune import initial
      >>> [initial.linear(0.5, k, 2) for k in (1, 2)]
      [0.25, 0.5]
    """
    return sparsity if round == rounds else sparsity * round / rounds


def iterate(
    params: Tree,
    score_fn: Callable[[Tree, Tree], Tree],
    sparsity: float,
    *,
    rounds: int = 100,
    schedule: Course = exponential,
    regrow: bool = False,
    pattern: Patterns = Unstructured(),
    allocation: Allocation = _RANKED,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
) -> Tree:
    """Prune in rounds, each of which scores the network that the last one left.

    ``m_k = best (1 − s_k) of score_fn(θ, m_{k−1})``. With 100 rounds and SynFlow's score it is
    SynFlow, with SNIP's it is iterative SNIP, and FORCE with ``regrow=True``; one round is SNIP or
    GraSP itself. The parameters are not trained meanwhile.

    Args:
      params: tree of arrays, at their initial values.
      score_fn: ``(params, masks) -> scores`` by path, higher = kept. The parameters are given as
        they are and the masks apart: pass both on to a score that takes ``masks=``.
      sparsity: share of zeros among the prunable weights in the end, in [0, 1).
      rounds: how often the weights are scored, at least 1.
      schedule: ``(sparsity, round, rounds) -> sparsity`` after a round: `exponential`, `linear`, or
        a function of your own.
      regrow: let pruned weights compete again in each round, so that mistakes are undone (FORCE).
        Otherwise the masks of the rounds are nested.
      pattern: as in `make_masks`.
      allocation: as in `make_masks`; by default one ranking over all layers.
      where: as in `make_masks`.
      layers: as in `make_masks`.

    Returns:
      The masks: tree like ``params``, True = kept, ``optax.MaskedNode()`` where not prunable.
      `apply_masks` prunes with them; `static` trains with them.

    Raises:
      ValueError: sparsity out of range, less than one round, a schedule that falls or does not end
        at ``sparsity``, a pattern that does not fit, scores that are NaN, missing or of another
        shape (by path), or nothing selected.
      TypeError: ``rounds`` is not an integer.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import initial, scores
      >>> params = {"one": jnp.array([[1.0, 2.0, 3.0]]), "two": jnp.array([[9.0], [5.0], [0.1]])}
      >>> def apply_fn(params, x):
      ...     return x @ params["one"] @ params["two"]
      >>> def score_fn(params, masks):
      ...     return scores.synflow(apply_fn, params, jnp.ones((1, 1)), masks=masks)
      >>> masks = initial.iterate(params, score_fn, 0.65, rounds=4)
      >>> masks["one"].ravel().tolist(), masks["two"].ravel().tolist()
      ([False, True, False], [False, True, False])

    Reference:
      Tanaka et al., SynFlow, arXiv:2006.05467, algorithm 1; de Jorge et al., FORCE,
      arXiv:2006.09081, algorithm 1.
    """
    sparsity = as_sparsity("sparsity", sparsity)
    course = _course(schedule, sparsity, _as_rounds(rounds), regrow)
    check_target(pattern, sparsity)
    rule = MaskRule(pattern, allocation, dict(layers or {}))
    weights = select(params, where)
    shapes = {path: leaf.shape for path, leaf in weights.items()}
    rule.check(shapes)
    table = [rule.counts(shapes, value, final=sparsity) for value in course]
    next_masks = jax.jit(lambda *args: _next_masks(rule, regrow, *args))
    masks = OrderedDict((path, (w == w) | (w != w)) for path, w in weights.items())
    for counts in table:
        scored = score_fn(params, selected_tree(params, masks))
        masks = next_masks(_matched(scored, shapes), masks, counts)
    return selected_tree(params, masks)


def _next_masks(
    rule: MaskRule, regrow: bool, scores: Any, masks: Any, counts: Any
) -> OrderedDict[str, jax.Array]:
    if not regrow:
        lowest = {path: jnp.full_like(leaf, -jnp.inf) for path, leaf in scores.items()}
        scores = OrderedDict((p, jnp.where(masks[p], x, lowest[p])) for p, x in scores.items())
    found = rule.masks(scores, counts)
    return OrderedDict((path, found[path]) for path in scores)


def _matched(scored: Tree, shapes: Mapping[str, tuple[int, ...]]) -> OrderedDict[str, jax.Array]:
    """Return the scores of the prunable weights in their order, checked."""
    found = paths.flatten(scored)
    for path, shape in shapes.items():
        leaf = found.get(path)
        if leaf is None or leaf.shape != shape or not jnp.issubdtype(leaf.dtype, jnp.floating):
            shown = "none" if leaf is None else f"{leaf.dtype} of shape {leaf.shape}"
            raise ValueError(
                f"score_fn must return floating-point scores of shape {shape} for {path!r}, got "
                f"{shown}. Give it and iterate the same where=."
            )
    scores = OrderedDict((path, found[path]) for path in shapes)
    refuse_nan(scores)
    return scores


def _as_rounds(rounds: Any) -> int:
    try:
        number = None if isinstance(rounds, bool) else operator.index(rounds)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(
            f"rounds must be an integer, got {rounds!r} of type {type(rounds).__name__}."
        )
    if number < 1:
        raise ValueError(f"rounds must be 1 or more, got {number}. One round is one-shot pruning.")
    return number


def _course(schedule: Course, sparsity: float, rounds: int, regrow: bool) -> list[float]:
    course = [schedule(sparsity, k, rounds) for k in range(1, rounds + 1)]
    for k, value in enumerate(course, 1):
        as_sparsity(f"schedule({sparsity}, {k}, {rounds})", value)
    for k, (before, after) in enumerate(itertools.pairwise(course), 2):
        if after < before and not regrow:
            raise ValueError(
                f"schedule falls from {before} to {after} in round {k} of {rounds}: what is pruned "
                "does not come back. Let it rise, or pass regrow=True."
            )
    if course[-1] != sparsity:
        raise ValueError(
            f"schedule ends at {course[-1]} after {rounds} rounds, not at sparsity={sparsity}. "
            "Return sparsity when round == rounds."
        )
    return course
