"""What methods share that start dense and rank weights: their plan, counts and masks."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import allocation as allocations
from jaxprune._core import paths
from jaxprune._core.meshes import shards_of, split_over
from jaxprune._core.select import refuse_nan
from jaxprune.masks import Counts, MaskRule, describe
from jaxprune.patterns import Channel
from jaxprune.transforms._course import Course, Stages, loose_of, sizes_of
from jaxprune.transforms._timetable import Timetable
from jaxprune.transforms.recipe import Leaves, Moment, everything
from jaxprune.types import Score, Shapes, Tree


@dataclasses.dataclass(frozen=True)
class Plan:
    """When masks change, and to which sparsity.

    Attributes:
      timetable: the updates.
      values: sparsity at each update, in float64; None if it is only known inside jit.
      final: sparsity at the end, if known.
      text: names all that decides the plan.
      traced: ``step -> sparsity`` inside jit, where ``values`` is None.
    """

    timetable: Timetable
    values: Sequence[float] | None
    final: float | None
    text: str
    traced: Callable[[jax.Array], jax.Array] | None = None


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How masks follow from weights: `Recipe.init` and `Recipe.change` of the methods.

    Attributes:
      score: what a weight is worth.
      rule: pattern, allocation and stacked layers.
      plan: when, and to which sparsity.
      shapes: global shapes inside ``shard_map``, or None.
      axis_names: as in `jaxprune.gradual`.
    """

    score: Score
    rule: MaskRule
    plan: Plan
    shapes: Shapes | None
    axis_names: Sequence[str] | None

    @functools.cached_property
    def budget(self) -> "Budget":
        """How many units are kept."""
        return Budget(self.rule, self.plan, self.shapes)

    def init(self, weights: Leaves) -> tuple[Leaves, Tree]:
        """Return masks that keep everything, once it is clear that the plan fits."""
        self.rule.check({path: weight.shape for path, weight in weights.items()})
        with split_over(self.axis_names):
            self.budget.check(weights)
        return {path: everything(weight) for path, weight in weights.items()}, ()

    @property
    def course(self) -> Course:
        """What is known of the masks before the run."""
        return Course(self._stages, self.rule)

    def _stages(self, shapes: Shapes, steps: int | None) -> Stages:
        plan, rule = self.plan, self.rule
        if plan.values is None:
            changes, table = _traced_table(rule, plan, shapes, steps)
        else:
            changes = plan.timetable.steps()
            table = tabulated(rule, shapes, plan.values, plan.final)
        sizes, live = sizes_of(shapes), rule.live(shapes, table)
        # What changes in a call is seen from the next one on.
        first = np.asarray([0, *(step + 1 for step in changes)], np.int64)
        seen = {path: np.concatenate([[sizes[path]], live[path]]) for path in shapes}
        return Stages(first, seen, seen, loose_of(rule))

    def change(self, moment: Moment) -> tuple[Leaves, Tree]:
        """Return the masks of the best weights among those that live."""
        fill = moment.fill
        scores = paths.flatten(self.score(fill(moment.weights), fill(moment.grads)))
        _check_scores(self.score, scores, moment.weights)
        refuse_nan(scores)
        counts = self.budget.counts(scores, moment)
        return self.rule.masks(of_live(scores, moment.masks), counts), ()


def of_live(scores: Leaves, masks: Leaves) -> Leaves:
    """Return scores that rank pruned weights below all others."""
    return {
        p: jnp.where(m, scores[p], jnp.full_like(scores[p], -jnp.inf)) for p, m in masks.items()
    }


def tabulated(
    rule: MaskRule, shapes: Shapes, values: Sequence[float], final: float | None
) -> Counts:
    """Return the units kept at each of some sparsities, one row for each, from the host."""
    rows = [rule.counts(shapes, value, final=final) for value in values]
    return jax.tree.map(lambda *units: np.stack([np.asarray(u, np.int32) for u in units]), *rows)


def _traced_table(
    rule: MaskRule, plan: Plan, shapes: Shapes, steps: int | None
) -> tuple[list[int], Counts]:
    """Evaluate a schedule without a window as the transform does, at all its changes at once."""
    if steps is None:
        raise ValueError(
            "the schedule of sparsity has no window, so that nothing says how long training is. "
            "Pass steps=, the calls of update, or use one of jaxprune.schedules."
        )
    assert plan.traced is not None
    begin, every = plan.timetable.begin, plan.timetable.every
    changes = np.arange(begin, max(steps, begin + 1), every, dtype=np.int32)
    sparsities = jax.jit(jax.vmap(plan.traced))(changes)
    table = jax.jit(jax.vmap(lambda sparsity: rule.counts(shapes, sparsity)))(sparsities)
    return changes.tolist(), jax.tree.map(np.asarray, table)


def given_shapes(shapes: Shapes, leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that were given for some leaves.

    Raises:
      ValueError: one is missing.
    """
    missing = [path for path in leaves if path not in shapes]
    if missing:
        raise ValueError(
            f"shapes has no entry for {paths.listed(missing)}; its entries are "
            f"{paths.listed(shapes)}. Pass the global shape of every prunable parameter by path."
        )
    return {path: tuple(shapes[path]) for path in leaves}


class Budget:
    """How many units are kept at an update: tabulated in float64 where the schedule allows."""

    def __init__(self, rule: MaskRule, plan: Plan, shapes: Shapes | None) -> None:
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
        """Return the units that are kept at the present update."""
        shapes = self._shapes(scores)
        if self.plan.values is None:
            assert self.plan.traced is not None
            return self.rule.counts(shapes, self.plan.traced(moment.step))
        index = jnp.minimum(moment.turn, np.int32(len(self.plan.values) - 1))
        return jax.tree.map(
            lambda rows: jnp.asarray(rows)[index], self.table(tuple(shapes.items()))
        )

    def _table(self, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Counts:
        return tabulated(self.rule, dict(shapes), self.plan.values or [], self.plan.final)

    def _shapes(self, leaves: Leaves) -> dict[str, tuple[int, ...]]:
        """Return the global shapes, which inside ``shard_map`` are not those of the arrays."""
        shards = {path: shards_of(leaf) for path, leaf in leaves.items()}
        if max(shards.values()) > 1:
            self._check_splittable(shards)
        if self.given is not None:
            return given_shapes(self.given, leaves)
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
