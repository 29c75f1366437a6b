"""Gradual pruning: sparsity grows by a schedule while the model trains (arXiv:1710.01878)."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jaxprune import allocation as allocations
from jaxprune import schedules
from jaxprune._core.checks import debug_check
from jaxprune._core.prunable import Where, default_where
from jaxprune.masks import MaskRule, Patterns, check_target, describe
from jaxprune.patterns import Unstructured
from jaxprune.schedules import Constant
from jaxprune.scores import magnitude
from jaxprune.transforms._ranking import Plan, Ranking
from jaxprune.transforms._state import Method
from jaxprune.transforms._timetable import Timetable, as_period
from jaxprune.transforms.recipe import Recipe, dense_gradients, masked_gradients, wrap
from jaxprune.types import Allocation, Score, Shapes


def gradual(
    inner: optax.GradientTransformation,
    sparsity: float | Callable[[Any], Any],
    *,
    every: int = 1,
    score: Score = magnitude,
    pattern: Patterns = Unstructured(),
    allocation: Allocation = allocations.uniform,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
    mask_gradients: bool = False,
    packed: bool = False,
    axis_names: Sequence[str] | None = None,
    shapes: Shapes | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Prune gradually while ``inner`` trains.

    ``update_t = where(mask_t, inner update, −param)``, with ``mask_t`` recomputed from the present
    parameters at the steps of the schedule's window, every ``every`` steps and at its end:
    after ``optax.apply_updates`` every pruned weight is exactly 0.0, and a kept weight moves
    exactly as ``inner`` says. Pruned weights stay pruned while the sparsity grows.

    Args:
      inner: the optimizer to wrap. ``optax.MultiSteps`` goes outside.
      sparsity: share of zeros among the prunable weights, in [0, 1): a number, reached at the
        first step, or a schedule of the step. Call t of ``update``, from 0, uses ``sparsity(t)``.
        Schedules with a window (`jaxprune.schedules`) give counts that are exact; any other
        callable is evaluated inside jit, in float32, and the counts with it.
      every: steps between changes of masks.
      score: what a weight is worth, ``(params, grads) -> scores``.
      pattern: as in `jaxprune.make_masks`. N:M patterns keep ``⌈density · m⌉`` weights of each
        group on the way.
      allocation: as in `jaxprune.make_masks`.
      where: as in `jaxprune.make_masks`.
      layers: as in `jaxprune.make_masks`.
      mask_gradients: give ``inner`` zero gradients for pruned weights.
      packed: store masks as one bit a weight along the last axis, instead of one byte.
      axis_names: inside ``jax.shard_map`` with ``check_vma=False``: the mesh axes that split each
        weight.
      shapes: inside ``jax.shard_map``: global shape of each prunable parameter by path, for
        allocations that look at shapes.

    Returns:
      An optax transform. Its state's masks are found with `jaxprune.get_masks`.

    Raises:
      ValueError: a number out of range, a schedule that leaves [0, 1), a pattern that does not
        fit, nothing selected, or ``optax.MultiSteps`` inside ``inner``.
      TypeError: ``inner`` is no optimizer, or an integer parameter is selected.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> params = {"kernel": jnp.array([[4.0, 3.0], [2.0, 1.0]])}
      >>> schedule = jaxprune.schedules.cubic(0.0, 0.5, begin=0, end=2)
      >>> tx = jaxprune.gradual(optax.sgd(0.5), schedule)
      >>> opt_state = tx.init(params)
      >>> for _ in range(3):
      ...     grads = {"kernel": jnp.ones((2, 2))}
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params["kernel"].ravel())
      [3.5 2.5 1.5 0.5]
      [3. 2. 0. 0.]
      [2.5 1.5 0.  0. ]

    Reference:
      Zhu and Gupta, To prune, or not to prune, arXiv:1710.01878.
    """
    plan = _plan(sparsity, every, pattern)
    rule = MaskRule(pattern, allocation, dict(layers or {}))
    ranking = Ranking(score, rule, plan, shapes, axis_names)
    text = f"gradual|{plan.text}|{describe(score)}|{rule.describe()}|{mask_gradients}"
    recipe = Recipe(
        method=Method("gradual", reached=plan.timetable.end, course=ranking.course),
        text=text,
        where=where,
        timetable=plan.timetable,
        init=ranking.init,
        change=ranking.change,
        gradients=masked_gradients if mask_gradients else dense_gradients,
        packed=packed,
        axis_names=axis_names,
    )
    return wrap(inner, recipe)


def _plan(sparsity: float | Callable[[Any], Any], every: int, pattern: Patterns) -> Plan:
    period = as_period("every", every)
    schedule = sparsity if callable(sparsity) else schedules.one_shot(sparsity)
    begin, end = (getattr(schedule, name, None) for name in ("begin", "end"))
    at = getattr(schedule, "at", None)
    timetable = Timetable(0 if begin is None else begin, period, end)
    # Without an end there are updates for ever, and only a constant has one value for them.
    known = at is not None and (end is not None or isinstance(schedule, Constant))
    values = [at(step) for step in timetable.steps()] if at and known else None
    for step, value in zip(timetable.steps(), values or [], strict=False):
        _check_value(schedule, step, value)
    if values is not None:
        check_target(pattern, values[-1])
    elif callable(sparsity):
        _check_value(sparsity, 0, float(sparsity(0)))
    text, traced = f"{describe(schedule)}|{timetable}", functools.partial(_traced, schedule)
    return Plan(timetable, values, None if values is None else values[-1], text, traced)


def _traced(schedule: Callable[[Any], Any], step: jax.Array) -> jax.Array:
    """Return the sparsity at a step, evaluated inside jit."""
    value = jnp.asarray(schedule(step), jnp.float32)
    if not isinstance(value, Tracer):
        _check_value(schedule, int(step), float(value))
    inside = (value >= 0.0) & (value < 1.0)
    debug_check(inside, "the sparsity schedule gives {value}", value=value)
    return jnp.clip(value, 0.0, np.float32(1.0 - 2.0**-24))


def _check_value(schedule: Any, step: int, value: float) -> None:
    if not 0.0 <= value < 1.0:  # also refuses NaN
        raise ValueError(
            f"sparsity={describe(schedule)} gives {value} at step {step}; a sparsity is the share "
            "of zeros, in [0, 1). Correct the schedule."
        )
