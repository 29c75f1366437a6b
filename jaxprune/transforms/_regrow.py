"""What drop-and-grow methods share: settings, counts from the host, and the choice of masks."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import allocation as allocations
from jaxprune import scores
from jaxprune._core import paths, turns
from jaxprune._core.meshes import known_axes, shards_of, split_over
from jaxprune._core.prunable import Where
from jaxprune._core.search import sums
from jaxprune._core.select import refuse_nan
from jaxprune.masks import MaskRule, Patterns, check_target, describe
from jaxprune.patterns import NM, Unstructured
from jaxprune.schedules import as_sparsity
from jaxprune.transforms import growth as growths
from jaxprune.transforms._course import Course, Stages, looking, sizes_of, steady
from jaxprune.transforms._ranking import given_shapes, tabulated
from jaxprune.transforms._timetable import Timetable, as_period, as_step
from jaxprune.transforms.drops import Drop, share_at
from jaxprune.transforms.growth import Growth, Momentum
from jaxprune.transforms.moments import Moments
from jaxprune.transforms.recipe import Leaves, Moment, everything
from jaxprune.types import Allocation, Pattern, Score, Shapes


@dataclasses.dataclass(frozen=True)
class Settings:
    """The checked arguments of a method that drops and grows, and what some of them add."""

    sparsity: float
    timetable: Timetable
    drop: Drop
    growth: Growth
    score: Score
    rule: MaskRule
    where: Where
    moments: Moments | None
    regrow: bool
    seed: int
    packed: bool
    axis_names: Sequence[str] | None
    shapes: Shapes | None
    track_fired: bool = False

    def text(self, name: str) -> str:
        """Return a name of the recipe with all that decides its masks."""
        parts = (self.drop, self.growth, self.score, self.moments)
        functions = "|".join(describe(part) for part in parts)
        numbers = f"{self.sparsity}|{self.timetable}|{self.regrow}|{self.seed}"
        return f"{name}|{numbers}|{functions}|{self.rule.describe()}"

    def shares(self) -> list[float]:
        """Return the share of the live weights that each update drops."""
        return [share_at(self.drop, step) for step in self.timetable.steps()]


def course_of(settings: Settings, loose: str = "") -> Course:
    """Return the course of a method that keeps the number of live weights."""

    def stages(shapes: Shapes, steps: int | None) -> Stages:
        del steps
        table = tabulated(settings.rule, shapes, [settings.sparsity], settings.sparsity)
        live = {path: row[0] for path, row in settings.rule.live(shapes, table).items()}
        if isinstance(settings.growth, Momentum):
            return steady(live, sizes_of(shapes))._replace(loose=loose)
        still = steady(live)._replace(loose=loose)
        draws = settings.growth is growths.random
        return still if draws else looking(still, shapes, settings.timetable.steps())

    return Course(stages, settings.rule)


def random_masks(settings: Settings, weights: Leaves, units: dict[str, Any]) -> Leaves:
    """Return the first masks: an exact number of live weights of each layer, at random."""
    if not weights:
        return {}
    drawn = scores.random(weights, jax.random.key(settings.seed))
    with split_over(settings.axis_names):
        masks = settings.rule.masks(drawn, units)
    return {path: masks[path] & everything(weight) for path, weight in weights.items()}


class Counts(NamedTuple):
    """Whole numbers of one weight; each is one per layer where layers are stacked."""

    units: Any  # live units of the pattern
    stay: Any  # units that an update does not drop


def regrown(settings: Settings, moment: Moment, counts: dict[str, Counts]) -> Leaves:
    """Return the masks after a drop and a growth."""
    fill = moment.fill
    kept = paths.flatten(settings.score(fill(moment.weights), fill(moment.grads)))
    key = jax.random.fold_in(jax.random.key(settings.seed), moment.step)
    grown = settings.growth(moment, key)
    _check_grown(settings.growth, grown, moment.weights)
    refuse_nan({"score": kept, "growth": grown})
    found: Leaves = {}
    last = None
    for path, mask in moment.masks.items():
        score, growth = (turns.after(last, leaves[path]) for leaves in (kept, grown))
        found[path] = last = drop_and_grow(settings, path, mask, score, growth, counts[path])
    return found


def _check_grown(growth: Growth, grown: Leaves, weights: Leaves) -> None:
    for path, weight in weights.items():
        found = grown.get(path)
        if found is None or found.shape != weight.shape:
            got = "none" if found is None else f"shape {found.shape}"
            raise ValueError(
                f"growth={describe(growth)} must return scores of shape {weight.shape} for "
                f"{path!r}, got {got}. A growth rule is a function (moment, key) -> "
                "{path: scores}."
            )


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
        units = settings.rule.counts(by_path, settings.sparsity, final=settings.sparsity)
        shares = settings.shares()
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
        return given_shapes(settings.shapes, weights)
    if split:
        raise ValueError(
            "inside shard_map the shapes of weights are those of one shard. "
            "Pass shapes={path: global shape}."
        )
    return {path: weight.shape for path, weight in weights.items()}


def live_counts(rule: MaskRule, masks: Leaves) -> Leaves:
    """Count the live weights of each parameter, one per layer where layers are stacked."""
    counts: Leaves = {}
    for path, mask in masks.items():
        axis = rule.layer_axis(path, mask.shape)
        axes = None if axis is None else tuple(a for a in range(mask.ndim) if a != axis)
        (count,) = sums([mask], axes, known_axes(mask))
        counts[path] = count.reshape(() if axis is None else (mask.shape[axis],))
    return counts


def as_fixed(shares: Sequence[float]) -> np.ndarray:
    """Return shares in [0, 1) as uint32 multiples of 2**-32, rounded down."""
    return np.asarray([int(share * 2.0**32) for share in shares], np.uint32)


def ceil_share(fixed: jax.Array, count: jax.Array) -> jax.Array:
    """Return ``⌈share · count⌉`` in whole numbers: float32 would be wrong beyond 2**24.

    Args:
      fixed: uint32, a share of `as_fixed`.
      count: int32, not negative.
    """
    count = count.astype(jnp.uint32)
    mask, half = np.uint32(0xFFFF), np.uint32(16)
    a, b, c, d = count >> half, count & mask, fixed >> half, fixed & mask
    middle = (a * d & mask) + (b * c & mask) + (b * d >> half)
    high = a * c + (a * d >> half) + (b * c >> half) + (middle >> half)
    rest = count * fixed != 0
    return (high + rest.astype(jnp.uint32)).astype(jnp.int32)


def every_few(every: int, begin: int | None, end: int) -> Timetable:
    """Return the timetable of updates at ``begin``, every few steps after, below ``end``."""
    every, end = as_period("every", every), as_period("end", end)
    first = every if begin is None else as_step("begin", begin)
    if first >= end:
        named = f"every={every}" if begin is None else f"begin={begin}"
        remedy = "Lower every" if begin is None else "Begin earlier"
        raise ValueError(
            f"{named} leaves no update before end={end}: masks would never change. "
            f"{remedy}, or train longer; for fixed masks use jaxprune.static."
        )
    return Timetable(first, every, first + (end - 1 - first) // every * every)


def checked_sparsity(sparsity: float, pattern: Patterns) -> float:
    """Return the sparsity if it is in range and the pattern's own."""
    value = as_sparsity("sparsity", sparsity)
    check_target(pattern, value)
    return value


def checked_growth(growth: Growth) -> Growth:
    """Return the growth rule if it can be called."""
    if not callable(growth):
        raise TypeError(
            f"growth must be a function (moment, key) -> {{path: scores}}, got {growth!r} of type "
            f"{type(growth).__name__}. Pass jaxprune.growth.gradient, random or momentum()."
        )
    return growth


def checked_allocation(name: str, allocation: Allocation) -> Allocation:
    """Return the allocation of random masks if it needs no scores."""
    if isinstance(allocation, allocations.Global):
        raise ValueError(
            f"{name}={allocation!r} needs scores, and the first masks are random. Use "
            "allocation.erdos_renyi_kernel, erdos_renyi, uniform or per_layer."
        )
    return allocation
