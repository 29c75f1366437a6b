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
from jaxprune._core import paths
from jaxprune._core.checks import debug_check
from jaxprune._core.meshes import shards_of, split_over
from jaxprune._core.prunable import Where, default_where
from jaxprune._core.select import refuse_nan
from jaxprune.masks import Counts, MaskRule, Patterns, check_target, describe
from jaxprune.patterns import Channel, Unstructured
from jaxprune.schedules import Constant
from jaxprune.scores import magnitude
from jaxprune.transforms._state import Method
from jaxprune.transforms._timetable import Timetable, as_period
from jaxprune.transforms.recipe import (
    Leaves,
    Moment,
    Recipe,
    dense_gradients,
    everything,
    masked_gradients,
    wrap,
)
from jaxprune.types import Allocation, Score, Shapes, Tree


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
    budget = _Budget(rule, plan, dict(shapes) if shapes is not None else None)

    def init(weights: Leaves) -> tuple[Leaves, Tree]:
        rule.check({path: weight.shape for path, weight in weights.items()})
        with split_over(axis_names):
            budget.check(weights)
        return {path: everything(weight) for path, weight in weights.items()}, ()

    def change(moment: Moment) -> tuple[Leaves, Tree]:
        fill = moment.fill
        scores = paths.flatten(score(fill(moment.weights), fill(moment.grads)))
        _check_scores(score, scores, moment.weights)
        refuse_nan(scores)
        nested = {p: jnp.where(m, scores[p], _lowest(scores[p])) for p, m in moment.masks.items()}
        return rule.masks(nested, budget.counts(scores, moment)), ()

    text = f"gradual|{plan}|{describe(score)}|{rule.describe()}|{mask_gradients}"
    recipe = Recipe(
        method=Method("gradual", reached=plan.timetable.end),
        text=text,
        where=where,
        timetable=plan.timetable,
        init=init,
        change=change,
        gradients=masked_gradients if mask_gradients else dense_gradients,
        packed=packed,
        axis_names=axis_names,
    )
    return wrap(inner, recipe)


class _Plan:
    """When masks change, and to which sparsity.

    Attributes:
      timetable: the updates.
      values: sparsity at each update, in float64; None if the schedule is evaluated inside jit.
      final: sparsity at the end, if known.
    """

    def __init__(self, sparsity: float | Callable[[Any], Any], every: int) -> None:
        period = as_period("every", every)
        self.schedule = sparsity if callable(sparsity) else schedules.one_shot(sparsity)
        begin, end = (getattr(self.schedule, name, None) for name in ("begin", "end"))
        at = getattr(self.schedule, "at", None)
        self.timetable = Timetable(0 if begin is None else begin, period, end)
        # Without an end there are updates for ever, and only a constant has one value for them.
        known = at is not None and (end is not None or isinstance(self.schedule, Constant))
        self.values = [at(step) for step in self.timetable.steps()] if at and known else None
        self.final = None if self.values is None else self.values[-1]
        for step, value in zip(self.timetable.steps(), self.values or [], strict=False):
            _check_value(self.schedule, step, value)

    def __repr__(self) -> str:
        return f"{describe(self.schedule)}|{self.timetable}"

    def traced(self, step: jax.Array) -> jax.Array:
        """Return the sparsity at a step, evaluated inside jit."""
        value = jnp.asarray(self.schedule(step), jnp.float32)
        if not isinstance(value, Tracer):
            _check_value(self.schedule, int(step), float(value))
        inside = (value >= 0.0) & (value < 1.0)
        debug_check(inside, "the sparsity schedule gives {value}", value=value)
        return jnp.clip(value, 0.0, np.float32(1.0 - 2.0**-24))


def _check_value(schedule: Any, step: int, value: float) -> None:
    if not 0.0 <= value < 1.0:  # also refuses NaN
        raise ValueError(
            f"sparsity={describe(schedule)} gives {value} at step {step}; a sparsity is the share "
            "of zeros, in [0, 1). Correct the schedule."
        )


def _plan(sparsity: float | Callable[[Any], Any], every: int, pattern: Patterns) -> _Plan:
    plan = _Plan(sparsity, every)
    if plan.final is not None:
        check_target(pattern, plan.final)
    elif callable(sparsity):
        _check_value(sparsity, 0, float(sparsity(0)))
    return plan


class _Budget:
    """How many units are kept at an update: tabulated in float64 where the schedule allows."""

    def __init__(self, rule: MaskRule, plan: _Plan, shapes: dict[str, tuple[int, ...]] | None):
        self.rule, self.plan, self.given = rule, plan, shapes
        self.table = functools.lru_cache(maxsize=8)(self._table)

    def check(self, weights: Leaves) -> None:
        """Raise if the allocation does not fit the weights, before anything was trained."""
        if not weights:
            return
        shapes = self._shapes(weights)
        if self.plan.values is None:
            self._check_traceable()
        else:
            self.table(tuple(shapes.items()))

    def counts(self, scores: Leaves, moment: Moment) -> Counts:
        shapes = self._shapes(scores)
        if self.plan.values is None:
            return self.rule.counts(shapes, self.plan.traced(moment.step))
        index = jnp.minimum(moment.turn, np.int32(len(self.plan.values) - 1))
        return jax.tree.map(
            lambda rows: jnp.asarray(rows)[index], self.table(tuple(shapes.items()))
        )

    def _table(self, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Counts:
        rows = [
            self.rule.counts(dict(shapes), value, final=self.plan.final)
            for value in self.plan.values or []
        ]
        return jax.tree.map(
            lambda *units: np.stack([np.asarray(u, np.int32) for u in units]), *rows
        )

    def _shapes(self, leaves: Leaves) -> dict[str, tuple[int, ...]]:
        """Return the global shapes, which inside ``shard_map`` are not those of the arrays."""
        shards = {path: shards_of(leaf) for path, leaf in leaves.items()}
        if max(shards.values()) > 1:
            self._check_splittable(shards)
        if self.given is not None:
            missing = [path for path in leaves if path not in self.given]
            if missing:
                raise ValueError(
                    f"shapes has no entry for {paths.listed(missing)}; its entries are "
                    f"{paths.listed(self.given)}. Pass the global shape of every prunable "
                    "parameter by path."
                )
            return {path: tuple(self.given[path]) for path in leaves}
        return {path: self._grown(path, x.shape, shards[path]) for path, x in leaves.items()}

    def _grown(self, path: str, shape: tuple[int, ...], shards: int) -> tuple[int, ...]:
        """Return a shape of the global size: which axis is split is not known here."""
        axis = int(self.rule.layer_axis(path, shape) == 0)
        return tuple(n * shards if i == axis else n for i, n in enumerate(shape))

    def _check_splittable(self, shards: dict[str, int]) -> None:
        blind = isinstance(self.rule.allocation, allocations.Uniform | allocations.Global)
        if not blind and self.given is None:
            raise ValueError(
                f"allocation={describe(self.rule.allocation)} looks at the shapes of weights, "
                "which inside shard_map are those of one shard. Pass shapes={path: global shape}."
            )
        for path in (path for path, count in shards.items() if count > 1):
            if isinstance(pattern := self.rule.pattern_of(path), Channel):
                raise ValueError(
                    f"pattern={pattern!r} cannot be used for {path!r} inside shard_map: a slice "
                    "is spread over several shards. Call update under jit with sharded arrays "
                    "instead."
                )

    def _check_traceable(self) -> None:
        allocation = self.rule.allocation
        if getattr(allocation, "exact_total", False) and not isinstance(
            allocation, allocations.Global
        ):
            raise ValueError(
                f"allocation={describe(allocation)} is computed on the host and needs a "
                "schedule with a window. Use one of jaxprune.schedules, such as "
                "schedules.cubic(0.0, 0.9, begin=1000, end=7000)."
            )


def _check_scores(score: Score, scores: Leaves, weights: Leaves) -> None:
    for path, weight in weights.items():
        found = scores.get(path)
        if found is None or found.shape != weight.shape:
            got = "none" if found is None else f"shape {found.shape}"
            raise ValueError(
                f"score={describe(score)} must return scores of shape {weight.shape} for "
                f"{path!r}, got {got}. A score is a function (params, grads) -> tree like params."
            )
        if not jnp.issubdtype(found.dtype, jnp.floating):
            raise TypeError(
                f"score={describe(score)} must return floating-point scores, got {found.dtype} "
                f"for {path!r}. Convert them with .astype(jnp.float32)."
            )


def _lowest(scores: jax.Array) -> jax.Array:
    return jnp.full_like(scores, -jnp.inf)
