"""GraNet: prune by a schedule, and regenerate connections at every update (arXiv:2106.10404)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import allocation as allocations
from jaxprune import schedules, scores
from jaxprune._core import paths
from jaxprune._core.prunable import Where, default_where
from jaxprune._core.select import refuse_nan
from jaxprune.masks import MaskRule, Patterns, check_target, describe
from jaxprune.patterns import NM, Unstructured
from jaxprune.schedules import as_sparsity
from jaxprune.transforms import _regrow
from jaxprune.transforms import growth as growths
from jaxprune.transforms import moments as moment_rules
from jaxprune.transforms._course import Course, Stages, looking, loose_of
from jaxprune.transforms._ranking import of_live, tabulated
from jaxprune.transforms._regrow import Counts, Settings
from jaxprune.transforms._state import Method
from jaxprune.transforms._timetable import Timetable, gate
from jaxprune.transforms.drops import Drop, as_drop, cosine_drop
from jaxprune.transforms.growth import Growth
from jaxprune.transforms.moments import Moments
from jaxprune.transforms.recipe import Leaves, Moment, Recipe, everything, masked_gradients, wrap
from jaxprune.types import Allocation, Score, Shapes, Tree

_RANKED = allocations.global_()


def granet(
    inner: optax.GradientTransformation,
    sparsity: float | Callable[[Any], Any],
    *,
    end: int,
    every: int = 1000,
    drop: Drop | None = None,
    growth: Growth = growths.gradient,
    score: Score = scores.magnitude,
    pattern: Patterns = Unstructured(),
    allocation: Allocation = _RANKED,
    start: Allocation = allocations.erdos_renyi_kernel,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
    moments: Moments = moment_rules.fresh,
    seed: int = 0,
    packed: bool = False,
    axis_names: Sequence[str] | None = None,
    shapes: Shapes | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Prune gradually, and after each pruning replace the weakest live weights (GraNet).

    An update takes two calls. The first prunes to ``sparsity(step)``, by one ranking over the whole
    model. The second regenerates: each layer drops ``⌈drop · live⌉`` of its live weights and grows
    as many where the dense gradient is largest. A schedule that starts at 0 trains dense to
    sparse, one that starts at 0.5, say, sparse to sparse.

    Args:
      inner: the optimizer to wrap; it sees zero gradients for pruned weights.
      sparsity: a schedule from `jaxprune.schedules`. Its first value is that of the first masks,
        which are random unless it is 0. A number regenerates only.
      end: step from which masks stay; regeneration goes on until there.
      every: steps between updates, 2 or more, from the schedule's begin on.
      drop: share of the live weights that an update replaces, in [0, 1), or a function of the step
        on the host; by default the published ``cosine_drop(0.5, end, floor=0.005)``.
      growth: as in `jaxprune.dynamic`.
      score: what a live weight is worth, ``(params, grads) -> scores``.
      pattern: as in `jaxprune.gradual`; N:M and blocks need a per-layer ``allocation``.
      allocation: how the schedule's budget is divided: ``global_()``, or per layer as in
        `jaxprune.gradual`.
      start: how the first masks' budget is divided.
      where: as in `jaxprune.make_masks`.
      layers: as in `jaxprune.make_masks`.
      moments: as in `jaxprune.dynamic`.
      seed: seed of the first masks and of random growth.
      packed: as in `jaxprune.gradual`.
      axis_names: as in `jaxprune.gradual`.
      shapes: as in `jaxprune.gradual`.

    Returns:
      An optax transform. The published code prunes and regenerates between two steps of the
      optimizer, with the gradient of the last.

    Raises:
      ValueError: a number out of range, a schedule whose end no update before ``end`` reaches, or
        a pattern that does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> schedule = jaxprune.schedules.cubic(0.0, 0.75, begin=0, end=4)
      >>> tx = jaxprune.granet(optax.sgd(0.01), schedule, every=2, end=8)
      >>> params = {"kernel": jnp.arange(1.0, 17.0).reshape(4, 4)}
      >>> opt_state = tx.init(params)
      >>> for _ in range(7):
      ...     grads = {"kernel": jnp.flip(params["kernel"])}
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(int(jaxprune.get_masks(opt_state)["kernel"].sum()), end=" ")
      16 16 6 6 4 4 4

    Reference:
      Liu et al., Sparse training via boosting pruning plasticity with neuroregeneration,
      arXiv:2106.10404.
    """
    plan = _Plan.of(sparsity, every, end)
    check_target(pattern, plan.values[-1])
    settings = Settings(
        sparsity=plan.first,
        timetable=plan.timetable,
        drop=cosine_drop(0.5, end, floor=0.005) if drop is None else as_drop(drop),
        growth=_regrow.checked_growth(growth),
        score=score,
        rule=MaskRule(pattern, _regrow.checked_allocation("start", start), dict(layers or {})),
        where=where,
        moments=moments,
        regrow=True,
        seed=seed,
        packed=packed,
        axis_names=axis_names,
        shapes=shapes,
    )
    return _transform(inner, settings, plan, MaskRule(pattern, allocation, dict(layers or {})))


class _Paired(Timetable):
    """Updates of two calls: one of the timetable, and the next."""

    def follows(self, step: jax.Array) -> jax.Array:
        """Tell whether a step is the second of an update."""
        return super().fires(step - np.int32(1))

    def fires(self, step: jax.Array) -> jax.Array:
        """Tell whether masks change at a (traced) step."""
        return super().fires(step) | self.follows(step)

    def index(self, step: jax.Array) -> jax.Array:
        """Return the number of the update at a (traced) step, from 0."""
        return super().index(step - self.follows(step).astype(np.int32))


@dataclasses.dataclass(frozen=True)
class _Plan:
    """When masks change, and the sparsity at each update in float64."""

    text: str
    timetable: _Paired
    first: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, sparsity: Any, every: int, end: int) -> "_Plan":
        schedule = sparsity if callable(sparsity) else schedules.constant(sparsity)
        at = getattr(schedule, "at", None)
        if at is None:
            raise ValueError(
                f"sparsity={describe(schedule)} must be a number or a schedule of "
                "jaxprune.schedules, whose values are known before training."
            )
        begin, stop = (getattr(schedule, name, None) for name in ("begin", "end"))
        grid = _regrow.every_few(every, begin, end)
        if every < 2:
            raise ValueError(
                f"every must be 2 or more, got {every}: an update prunes in one call and "
                "regenerates in the next."
            )
        assert grid.end is not None
        if stop is not None and grid.end < stop:
            raise ValueError(
                f"end={end} and every={every} leave no update from step {stop} on, where "
                f"sparsity={describe(schedule)} ends. Train longer, or end the schedule earlier."
            )
        before = as_sparsity("sparsity", at((begin or 0) - 1))
        values = tuple(as_sparsity("sparsity", at(step)) for step in grid.steps())
        text = f"{describe(schedule)}|{every}|{end}"
        return cls(text, _Paired(grid.begin, grid.every, grid.end), before, values)


def _transform(
    inner: optax.GradientTransformation, settings: Settings, plan: _Plan, pruning: MaskRule
) -> optax.GradientTransformationExtraArgs:
    budget = _Budget(settings, plan, pruning)

    def init(weights: Leaves) -> tuple[Leaves, Tree]:
        shapes = {path: weight.shape for path, weight in weights.items()}
        pruning.check(shapes)
        if weights:
            budget.table(tuple(_regrow.global_shapes(settings, weights).items()))
        if plan.first == 0.0:
            return {path: everything(weight) for path, weight in weights.items()}, ()
        return _regrow.random_masks(settings, weights, budget.first(weights)), ()

    def change(moment: Moment) -> tuple[Leaves, Tree]:
        follows = plan.timetable.follows(moment.step)
        prune = functools.partial(_pruned, settings, pruning, budget, moment)
        masks = gate(~follows, prune, moment.masks)
        between = moment._replace(masks=masks)
        return gate(follows, lambda: _regenerated(settings, budget, between), masks), ()

    def stages(shapes: Shapes, steps: int | None) -> Stages:
        del steps
        return _stages(settings, plan, pruning, shapes)

    course = Course(stages, pruning)
    text = f"{settings.text('granet')}|{plan.text}|{pruning.describe()}"
    last = plan.timetable.end
    recipe = Recipe(
        method=Method("granet", reached=None if last is None else last + 1, course=course),
        text=text,
        where=settings.where,
        timetable=plan.timetable,
        init=init,
        change=change,
        gradients=masked_gradients,
        moments=settings.moments,
        packed=settings.packed,
        axis_names=settings.axis_names,
        starts_changed=True,
    )
    return wrap(inner, recipe)


def _stages(settings: Settings, plan: _Plan, pruning: MaskRule, shapes: Shapes) -> Stages:
    """Return what is kept, with a look at all gradients in the second call of each update."""
    start = tabulated(settings.rule, shapes, [plan.first], plan.values[-1])
    later = tabulated(pruning, shapes, plan.values, plan.values[-1])
    rows = settings.rule.live(shapes, start), pruning.live(shapes, later)
    # Pruning takes nothing from a layer that has fewer live weights than its share.
    seen = {p: np.minimum.accumulate(np.concatenate([row[p] for row in rows])) for p in shapes}
    changes = plan.timetable.steps()
    first = np.asarray([0, *(step + 1 for step in changes)], np.int64)
    stages = Stages(first, seen, seen, loose_of(pruning))
    draws = settings.growth is growths.random
    return stages if draws else looking(stages, shapes, [step + 1 for step in changes])


def _pruned(settings: Settings, pruning: MaskRule, budget: "_Budget", moment: Moment) -> Leaves:
    fill = moment.fill
    ranked = paths.flatten(settings.score(fill(moment.weights), fill(moment.grads)))
    refuse_nan(ranked)
    masks = pruning.masks(of_live(ranked, moment.masks), budget.pruned(moment))
    # A layer that has fewer live weights than its share stays as it is.
    return {path: masks[path] & mask for path, mask in moment.masks.items()}


def _regenerated(settings: Settings, budget: "_Budget", moment: Moment) -> Leaves:
    fixed = jnp.asarray(budget.shares)[moment.turn]
    return _regrow.regrown(settings, moment, budget.regenerated(moment, fixed))


class _Budget:
    """How many weights the schedule keeps, from the host, and how many a layer has and replaces."""

    def __init__(self, settings: Settings, plan: _Plan, pruning: MaskRule) -> None:
        self.settings, self.plan, self.pruning = settings, plan, pruning
        self.shares = _regrow.as_fixed(settings.shares())
        self.table = functools.lru_cache(maxsize=8)(self._table)

    def first(self, weights: Leaves) -> dict[str, Any]:
        """Return the units of the first masks."""
        shapes = _regrow.global_shapes(self.settings, weights) if weights else {}
        return self.settings.rule.counts(shapes, self.plan.first, final=self.plan.values[-1])

    def pruned(self, moment: Moment) -> dict[str, Any]:
        """Return the units, or the total, that the schedule keeps at this update."""
        shapes = _regrow.global_shapes(self.settings, moment.weights)
        table = self.table(tuple(shapes.items()))
        return jax.tree.map(lambda rows: jnp.asarray(rows)[moment.turn], table)

    def regenerated(self, moment: Moment, fixed: jax.Array) -> dict[str, Counts]:
        """Return the units that each layer has, and those that it does not replace."""
        live = _regrow.live_counts(self.settings.rule, moment.masks)
        kept = live
        if not isinstance(self.pruning.allocation, allocations.Global):
            kept = {p: self._units(p, c, live[p]) for p, c in self.pruned(moment).items()}
        return {path: self._counts(path, kept[path], live[path], fixed) for path in live}

    def _units(self, path: str, units: jax.Array, live: jax.Array) -> jax.Array:
        return live if isinstance(self.pruning.pattern_of(path), Unstructured) else units

    def _counts(self, path: str, units: Any, live: jax.Array, fixed: jax.Array) -> Counts:
        many = live if isinstance(self.pruning.pattern_of(path), NM) else units
        return Counts(units, many - _regrow.ceil_share(fixed, many))

    def _table(self, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, Any]:
        return tabulated(self.pruning, dict(shapes), self.plan.values, self.plan.values[-1])
