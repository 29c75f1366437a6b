"""Dynamic sparse training: drop the least, grow others, and keep the number of live weights."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import allocation as allocations
from jaxprune import scores
from jaxprune._core import paths
from jaxprune._core.prunable import Where, default_where
from jaxprune._core.select import refuse_nan, shards_of, split_over
from jaxprune.masks import MaskRule, Patterns, check_target, describe
from jaxprune.patterns import NM, Unstructured
from jaxprune.schedules import as_sparsity
from jaxprune.transforms import growth as growths
from jaxprune.transforms import moments as moment_rules
from jaxprune.transforms._state import Method
from jaxprune.transforms._timetable import Timetable, as_period
from jaxprune.transforms.growth import Growth
from jaxprune.transforms.moments import Moments
from jaxprune.transforms.recipe import Leaves, Moment, Recipe, everything, masked_gradients, wrap
from jaxprune.types import Allocation, Pattern, Score, Shapes, Tree

Drop = float | Callable[[int], float]
"""Share of the live weights that an update drops: a number, or a function of the step (host)."""


def cosine_drop(share: float, end: int) -> Drop:
    """Let the share of dropped weights fall along a half cosine.

    ``share / 2 · (1 + cos(π · step / end))``

    Args:
      share: share at step 0, in [0, 1).
      end: step at which it reaches 0.

    Returns:
      A function of the step, evaluated on the host.

    Raises:
      ValueError: a share outside [0, 1) or an end below 1.

    Example:
      >>> import jaxprune
      >>> drop = jaxprune.transforms.cosine_drop(0.3, end=100)
      >>> [round(drop(step), 3) for step in (0, 50, 100)]
      [0.3, 0.15, 0.0]

    Reference:
      Evci et al., Rigging the lottery, arXiv:1911.11134.
    """
    _check_share("share", share)
    return _Cosine(float(share), as_period("end", end))


@dataclasses.dataclass(frozen=True)
class _Cosine:
    share: float
    end: int

    def __call__(self, step: int) -> float:
        return self.share / 2.0 * (1.0 + math.cos(math.pi * min(step / self.end, 1.0)))


def dynamic(
    inner: optax.GradientTransformation,
    sparsity: float,
    *,
    every: int,
    end: int,
    drop: Drop = 0.3,
    growth: Growth = growths.gradient,
    score: Score = scores.magnitude,
    pattern: Patterns = Unstructured(),
    allocation: Allocation = allocations.erdos_renyi_kernel,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
    moments: Moments = moment_rules.fresh,
    regrow: bool = True,
    seed: int = 0,
    packed: bool = False,
    axis_names: Sequence[str] | None = None,
    shapes: Shapes | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Train sparse from the start, and move the live weights to where they are needed.

    Masks start at random. At steps ``every``, ``2 · every``, ... below ``end``, each layer drops
    ``⌊drop · live⌋`` of its live weights, those of the least score, and grows as many: those that
    ``growth`` scores highest among the weights that are not kept. Grown weights start at zero.
    The number of live weights of a layer never changes. `jaxprune.rigl` and `jaxprune.set_` are
    this with their published settings.

    Args:
      inner: the optimizer to wrap; it sees zero gradients for pruned weights. ``optax.MultiSteps``
        goes outside: growth then sees the mean dense gradient.
      sparsity: share of zeros among the prunable weights, in [0, 1), from the first step on.
      every: steps between updates of the masks.
      end: step from which masks stay.
      drop: share of the live weights that an update drops, in [0, 1): a number, or a function of
        the step that is evaluated on the host, such as `cosine_drop`.
      growth: which pruned weights come back.
      score: which live weights stay, ``(params, grads) -> scores``.
      pattern: as in `jaxprune.make_masks`. Within N:M, weights are dropped over the whole layer,
        and each group grows what it lost; blocks and channels are dropped and grown whole.
      allocation: as in `jaxprune.make_masks`; not `allocation.global_`.
      where: as in `jaxprune.make_masks`.
      layers: as in `jaxprune.make_masks`.
      moments: what the inner optimizer's moments become where the mask changed.
      regrow: let an update grow what it has just dropped, as the published code does; such a
        weight keeps its value.
      seed: seed of the first masks and of random growth.
      packed: store masks as one bit a weight, instead of one byte.
      axis_names: as in `jaxprune.gradual`.
      shapes: as in `jaxprune.gradual`.

    Returns:
      An optax transform. The parameters that ``init`` sees may be dense: the first update sets the
      pruned ones to zero.

    Raises:
      ValueError: a number out of range, an ``every`` that leaves no update before ``end``, or a
        pattern that does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> tx = jaxprune.dynamic(optax.sgd(0.1), 0.5, every=2, end=10, drop=0.5)
      >>> params = {"kernel": jnp.arange(1.0, 17.0).reshape(4, 4)}
      >>> opt_state = tx.init(params)
      >>> first = jaxprune.get_masks(opt_state)["kernel"]
      >>> for _ in range(3):
      ...     updates, opt_state = tx.update({"kernel": params["kernel"]}, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> last = jaxprune.get_masks(opt_state)["kernel"]
      >>> int(first.sum()), int(last.sum()), int((params["kernel"] != 0).sum())
      (8, 8, 8)

    Reference:
      Evci et al., Rigging the lottery, arXiv:1911.11134.
    """
    return dynamic_named(
        "dynamic",
        inner,
        Settings(
            sparsity=_checked_sparsity(sparsity, pattern),
            timetable=_timetable(every, end),
            drop=_checked_drop(drop),
            growth=growth,
            score=score,
            rule=MaskRule(pattern, _checked_allocation(allocation), dict(layers or {})),
            where=where,
            moments=moments,
            regrow=regrow,
            seed=seed,
            packed=packed,
            axis_names=axis_names,
            shapes=shapes,
        ),
    )


@dataclasses.dataclass(frozen=True)
class Settings:
    """The checked arguments of `dynamic`."""

    sparsity: float
    timetable: Timetable
    drop: Drop
    growth: Growth
    score: Score
    rule: MaskRule
    where: Where
    moments: Moments
    regrow: bool
    seed: int
    packed: bool
    axis_names: Sequence[str] | None
    shapes: Shapes | None

    def text(self, name: str) -> str:
        """Return a name of the recipe with all that decides its masks."""
        parts = (self.drop, self.growth, self.score, self.moments)
        functions = "|".join(describe(part) for part in parts)
        numbers = f"{self.sparsity}|{self.timetable}|{self.regrow}|{self.seed}"
        return f"{name}|{numbers}|{functions}|{self.rule.describe()}"

    def share(self, step: int) -> float:
        """Return the share of live weights that the update at a step drops."""
        value = self.drop(step) if callable(self.drop) else self.drop
        return _check_share(f"drop at step {step}", value)


def dynamic_named(
    name: str, inner: optax.GradientTransformation, settings: Settings
) -> optax.GradientTransformationExtraArgs:
    """Return the transform of a drop-and-grow method."""
    budget = Budget(settings)

    def init(weights: Leaves) -> tuple[Leaves, Tree]:
        return random_masks(settings, budget, weights), ()

    def change(moment: Moment) -> tuple[Leaves, Tree]:
        fill = moment.fill
        kept = paths.flatten(settings.score(fill(moment.weights), fill(moment.grads)))
        key = jax.random.fold_in(jax.random.key(settings.seed), moment.step)
        grown = settings.growth(moment, key)
        refuse_nan({"score": kept, "growth": grown})
        counts = budget.at(moment)
        masks = {
            path: drop_and_grow(settings, path, mask, kept[path], grown[path], counts[path])
            for path, mask in moment.masks.items()
        }
        return masks, moment.extra

    recipe = Recipe(
        method=Method(name, reached=settings.timetable.end),
        text=settings.text(name),
        where=settings.where,
        timetable=settings.timetable,
        init=init,
        change=change,
        gradients=masked_gradients,
        moments=settings.moments,
        packed=settings.packed,
        axis_names=settings.axis_names,
        starts_changed=True,
    )
    return wrap(inner, recipe)


def random_masks(settings: Settings, budget: "Budget", weights: Leaves) -> Leaves:
    """Return the first masks: an exact number of live weights of each layer, at random."""
    if not weights:
        return {}
    settings.rule.check({path: weight.shape for path, weight in weights.items()})
    drawn = scores.random(weights, jax.random.key(settings.seed))
    with split_over(settings.axis_names):
        masks = settings.rule.masks(drawn, budget.units(weights))
    return {path: masks[path] & everything(weight) for path, weight in weights.items()}


class Counts(NamedTuple):
    """Whole numbers of one weight; each is one per layer where layers are stacked."""

    units: Any  # live units of the pattern
    stay: Any  # units that an update does not drop


def drop_and_grow(
    settings: Settings,
    path: str,
    mask: jax.Array,
    score: jax.Array,
    growth: jax.Array,
    counts: Counts,
) -> jax.Array:
    """Return the next mask of one weight: what stays outranks what may grow."""
    rule = settings.rule
    live = jnp.where(mask, score, jnp.full_like(score, -jnp.inf))
    dropping = dataclasses.replace(rule, pattern=_dropped_by(rule.pattern_of(path)))
    stay = dropping.masks({path: live}, {path: counts.stay})[path]
    if not settings.regrow:
        growth = jnp.where(mask, jnp.full_like(growth, -jnp.inf), growth)
    ranked = jnp.where(stay, jnp.full_like(growth, jnp.inf), growth)
    return rule.masks({path: ranked}, {path: counts.units})[path]


def _dropped_by(pattern: Pattern) -> Pattern:
    """Return the pattern that drops: a group of N:M is too small to lose a share of its weights."""
    return Unstructured() if isinstance(pattern, NM) else pattern


class Budget:
    """How many units live and stay, tabulated on the host from shapes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.table = functools.lru_cache(maxsize=8)(self._table)

    def units(self, weights: Leaves) -> dict[str, Any]:
        """Return the live units of each weight."""
        return {path: counts.units for path, counts in self._counts(weights).items()}

    def at(self, moment: Moment) -> dict[str, Counts]:
        """Return the counts of the present update."""
        counts = self._counts(moment.weights)
        return {p: c._replace(stay=jnp.asarray(c.stay)[moment.turn]) for p, c in counts.items()}

    def _counts(self, weights: Leaves) -> dict[str, Counts]:
        return self.table(tuple(global_shapes(self.settings, weights).items()))

    def _table(self, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, Counts]:
        settings, by_path = self.settings, dict(shapes)
        final = settings.sparsity
        units = settings.rule.counts(by_path, final, final=final)
        shares = [settings.share(step) for step in settings.timetable.steps()]
        return {p: self._row(p, by_path[p], units[p], shares) for p in by_path}

    def _row(self, path: str, shape: tuple[int, ...], units: Any, shares: list[float]) -> Counts:
        live = np.asarray(units, np.int64)
        pattern = self.settings.rule.pattern_of(path)
        if isinstance(pattern, NM):
            axis = self.settings.rule.layer_axis(path, shape)
            one = shape if axis is None else shape[:axis] + shape[axis + 1 :]
            live = np.full_like(live, pattern.live(one))
        # A product just below the integer that it stands for must not lose one.
        drops = [np.floor(share * live + 1e-9 * live).astype(np.int64) for share in shares]
        return Counts(units, np.stack([live - drop for drop in drops]).astype(np.int32))


def global_shapes(settings: Settings, weights: Leaves) -> dict[str, tuple[int, ...]]:
    """Return the shapes of whole weights, not of shards inside ``shard_map``."""
    with split_over(settings.axis_names):
        split = any(shards_of(weight) > 1 for weight in weights.values())
    if settings.shapes is not None:
        return {path: tuple(settings.shapes[path]) for path in weights}
    if split:
        raise ValueError(
            "inside shard_map the shapes of weights are those of one shard. "
            "Pass shapes={path: global shape}."
        )
    return {path: weight.shape for path, weight in weights.items()}


def _timetable(every: int, end: int) -> Timetable:
    every, end = as_period("every", every), as_period("end", end)
    if every >= end:
        raise ValueError(
            f"every={every} leaves no update before end={end}: masks would never change. "
            "Lower every, or train longer; for fixed masks use jaxprune.static."
        )
    return Timetable(every, every, (end - 1) // every * every)


def _checked_sparsity(sparsity: float, pattern: Patterns) -> float:
    value = as_sparsity("sparsity", sparsity)
    check_target(pattern, value)
    return value


def _checked_allocation(allocation: Allocation) -> Allocation:
    if isinstance(allocation, allocations.Global):
        raise ValueError(
            f"allocation={allocation!r} needs scores, and the first masks are random. Use "
            "allocation.erdos_renyi_kernel, erdos_renyi, uniform or per_layer."
        )
    return allocation


def _checked_drop(drop: Drop) -> Drop:
    return drop if callable(drop) else _check_share("drop", drop)


def _check_share(name: str, share: float) -> float:
    if not 0.0 <= share < 1.0:
        raise ValueError(
            f"{name} must be a share in [0, 1), got {share}. It is the share of a layer's live "
            "weights that an update drops and grows anew."
        )
    return float(share)
