"""SNFS: layers compete for live weights by their momentum (arXiv:1907.04840)."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import allocation as allocations
from jaxprune import scores
from jaxprune._core.meshes import known_axes
from jaxprune._core.prunable import Where, default_where
from jaxprune.masks import MaskRule
from jaxprune.transforms import _regrow
from jaxprune.transforms._regrow import Budget, Counts, Settings
from jaxprune.transforms._state import Method
from jaxprune.transforms.drops import Drop, as_drop, cosine_drop
from jaxprune.transforms.growth import Momentum, momentum
from jaxprune.transforms.moments import Moments
from jaxprune.transforms.recipe import Leaves, Moment, Recipe, dense_gradients, wrap
from jaxprune.types import Allocation, Shapes, Tree

_FULLEST = 0.99  # share of its free places that a layer takes at most
_CROWDED = 0.2  # sparsity below which a layer that grows drops no more than its zeros
_LOOSE = (
    "snfs lets layers compete for live weights: only the total is known, and FLOPs take the "
    "division of the first masks."
)


class Memory(NamedTuple):
    """What SNFS keeps besides masks."""

    momentum: Leaves  # float32, of the dense gradients
    correction: jax.Array  # () float32, weights to grow on top, after past misses
    missed: jax.Array  # () float32, sum of all misses of the total
    updates: jax.Array  # () int32, updates so far


def snfs(
    inner: optax.GradientTransformation,
    sparsity: float,
    *,
    end: int,
    every: int,
    begin: int | None = None,
    drop: Drop | None = None,
    decay: float = 0.9,
    allocation: Allocation = allocations.uniform,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
    moments: Moments | None = None,
    seed: int = 0,
    packed: bool = False,
    axis_names: Sequence[str] | None = None,
    shapes: Shapes | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Train sparse from the start, and move live weights between layers by momentum (SNFS).

    ``m ← decay · m + g``, of the dense gradients, in every call. At an update each layer drops
    ``⌈drop · live⌉`` of its weights, by magnitude; of all that were dropped, a layer grows the
    share ``mean |m| over its live weights``, normalised over layers, where ``|m|`` is largest.

    Args:
      inner: the optimizer to wrap. It sees dense gradients, as published, so that the moments of a
        grown weight are those of a weight that was always there.
      sparsity: share of zeros among the prunable weights at the start, in [0, 1). Whole numbers
        per layer let the total wander by a few weights; a correction brings it back.
      end: step from which masks stay.
      every: steps between updates of the masks; the paper takes an epoch.
      begin: as in `jaxprune.dynamic`.
      drop: share of the live weights that an update drops, in [0, 1), or a function of the step on
        the host; by default the published ``cosine_drop(0.5, end, floor=0.005)``.
      decay: of the momentum, in [0, 1).
      allocation: of the first masks.
      where: as in `jaxprune.make_masks`.
      layers: as in `jaxprune.make_masks`; each layer of a stack competes on its own.
      moments: what the inner optimizer's moments become where the mask changed; None leaves them.
      seed: seed of the first masks.
      packed: as in `jaxprune.gradual`.
      axis_names: as in `jaxprune.gradual`.
      shapes: as in `jaxprune.gradual`.

    Returns:
      An optax transform. The momentum adds four bytes a weight to the state.

    Raises:
      ValueError: as in `jaxprune.dynamic`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> tx = jaxprune.snfs(optax.sgd(0.1), 0.5, every=1, end=3)
      >>> params = {"a": {"kernel": jnp.ones((8, 8))}, "b": {"kernel": jnp.ones((8, 8))}}
      >>> grads = {"a": {"kernel": jnp.ones((8, 8))}, "b": {"kernel": 3 * jnp.ones((8, 8))}}
      >>> opt_state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> masks = jaxprune.get_masks(opt_state)
      >>> int(masks["a"]["kernel"].sum()) < 32 < int(masks["b"]["kernel"].sum())
      True

    Reference:
      Dettmers and Zettlemoyer, Sparse networks from scratch, arXiv:1907.04840.
    """
    rule = MaskRule(
        allocation=_regrow.checked_allocation("allocation", allocation), layers=dict(layers or {})
    )
    settings = Settings(
        sparsity=_regrow.checked_sparsity(sparsity, rule.pattern),
        timetable=_regrow.every_few(every, begin, end),
        drop=cosine_drop(0.5, end, floor=0.005) if drop is None else as_drop(drop),
        growth=momentum(decay),
        score=scores.magnitude,
        rule=rule,
        where=where,
        moments=moments,
        regrow=True,
        seed=seed,
        packed=packed,
        axis_names=axis_names,
        shapes=shapes,
    )
    return _transform(inner, settings, Budget(settings))


def _transform(
    inner: optax.GradientTransformation, settings: Settings, budget: Budget
) -> optax.GradientTransformationExtraArgs:
    rule = settings.growth
    assert isinstance(rule, Momentum)

    def init(weights: Leaves) -> tuple[Leaves, Tree]:
        settings.rule.check({path: weight.shape for path, weight in weights.items()})
        masks = _regrow.random_masks(settings, weights, budget.units(weights) if weights else {})
        zero = functools.partial(jnp.zeros, ())
        memory = Memory(rule.start(weights), zero(), zero(), zero(jnp.int32))
        return masks, memory

    def watch(moment: Moment) -> Memory:
        return moment.extra._replace(momentum=rule.watch(moment.extra.momentum, moment.grads))

    recipe = Recipe(
        method=Method(
            "snfs", reached=settings.timetable.end, course=_regrow.course_of(settings, _LOOSE)
        ),
        text=settings.text("snfs"),
        where=settings.where,
        timetable=settings.timetable,
        init=init,
        change=functools.partial(_changed, settings),
        watch=watch,
        gradients=dense_gradients,
        moments=settings.moments,
        packed=settings.packed,
        axis_names=settings.axis_names,
        starts_changed=True,
    )
    return wrap(inner, recipe)


def _changed(settings: Settings, moment: Moment) -> tuple[Leaves, Memory]:
    memory: Memory = moment.extra
    layers = _Layers.of(settings, moment)
    fixed = jnp.asarray(_regrow.as_fixed(settings.shares()))[moment.turn]
    removed = layers.removed(fixed)
    grown = _divided(layers, removed, jnp.sum(removed, dtype=jnp.float32) + memory.correction)
    stay = layers.live - removed
    units = jnp.clip(stay + grown, 0, layers.sizes)
    masks = _regrow.regrown(settings, moment, layers.by_path(units, stay))
    return masks, _corrected(memory, _missed(settings, moment, units))


def _missed(settings: Settings, moment: Moment, units: jax.Array) -> jax.Array:
    """Return how many live weights are missing from the total; negative if there are too many."""
    shapes = _regrow.global_shapes(settings, moment.weights)
    base = (1.0 - settings.sparsity) * sum(math.prod(shape) for shape in shapes.values())
    whole = round(base)  # the difference is small, and exact in whole numbers
    missing = np.int32(whole) - jnp.sum(units, dtype=jnp.int32)
    return missing.astype(jnp.float32) + np.float32(base - whole)


def _corrected(memory: Memory, missed: jax.Array) -> Memory:
    """Return the memory after an update whose total missed the first by some weights."""
    updates, total = memory.updates + np.int32(1), memory.missed + missed
    correction = 0.25 * memory.correction + 0.75 * missed + total / updates.astype(jnp.float32)
    return memory._replace(correction=correction, missed=total, updates=updates)


class _Layers(NamedTuple):
    """One number per layer, all layers of all weights in a row."""

    paths: tuple[tuple[str, int | None], ...]  # with the length of its stack
    sizes: jax.Array  # int32
    live: jax.Array  # int32
    share: jax.Array  # float32, of the growth

    @classmethod
    def of(cls, settings: Settings, moment: Moment) -> "_Layers":
        rule, masks = settings.rule, moment.masks
        counts = _regrow.live_counts(rule, masks)
        stacks = tuple((path, (*count.shape, None)[0]) for path, count in counts.items())
        shapes = _regrow.global_shapes(settings, moment.weights)
        sizes = [int(np.prod(shapes[p])) // (n or 1) for p, n in stacks for _ in range(n or 1)]
        live = jnp.concatenate([jnp.ravel(count) for count in counts.values()])
        force = _momentum_of_live(rule, moment)
        mean = jnp.where(live > 0, force / jnp.maximum(live, 1).astype(jnp.float32), 0.0)
        total = jnp.sum(mean)
        even = jnp.full_like(mean, 1.0 / len(sizes))
        share = jnp.where(total > 0, mean / jnp.where(total > 0, total, 1.0), even)
        return cls(stacks, jnp.asarray(sizes, jnp.int32), live, share)

    def removed(self, fixed: jax.Array) -> jax.Array:
        """Return how many weights each layer drops."""
        zeros = self.sizes - self.live
        sparsity = zeros.astype(jnp.float32) / self.sizes.astype(jnp.float32)
        many = _regrow.ceil_share(jnp.broadcast_to(fixed, self.live.shape), self.live)
        # A crowded layer that the others feed drops at the rate of its sparsity.
        few = jnp.ceil(sparsity * self.live.astype(jnp.float32)).astype(jnp.int32)
        crowded = (sparsity < _CROWDED) & (self.share * len(self.share) > 1.0)
        return jnp.where(crowded, jnp.minimum(few, many), many)

    def by_path(self, units: jax.Array, stay: jax.Array) -> dict[str, Counts]:
        """Return the counts of each weight."""
        counts, first = {}, 0
        for path, stack in self.paths:
            last = first + (stack or 1)
            both = (x[first] if stack is None else x[first:last] for x in (units, stay))
            counts[path], first = Counts(*both), last
        return counts


def _momentum_of_live(rule: MaskRule, moment: Moment) -> jax.Array:
    """Return the sum of ``|m|`` over the live weights of each layer."""
    sums = []
    for path, mask in moment.masks.items():
        leaf = moment.extra.momentum[path]
        axis = rule.layer_axis(path, mask.shape)
        axes = tuple(a for a in range(mask.ndim) if a != axis)
        total = jnp.sum(jnp.where(mask, jnp.abs(leaf), jnp.zeros_like(leaf)), axis=axes)
        names = known_axes(mask)
        sums.append(jnp.ravel(jax.lax.psum(total, names) if names else total))
    return jnp.concatenate(sums)


def _divided(layers: _Layers, removed: jax.Array, total: jax.Array) -> jax.Array:
    """Return how many weights each layer grows: its share, and what full layers hand on evenly.

    The published loop hands on a part of the rest at a time, to full layers, too. This is where it
    ends; without a loop, a GPU runs the whole step as one graph, and the host waits for nothing.
    """
    room = np.float32(_FULLEST) * (layers.sizes - layers.live + removed).astype(jnp.float32)
    wanted = jnp.ceil(layers.share * total)
    taken = jnp.minimum(wanted, room)
    gaps = room - taken
    grown = taken + jnp.minimum(_level(gaps, jnp.sum(wanted - taken)), gaps)
    return jnp.maximum(jnp.floor(grown), 0.0).astype(jnp.int32)


def _level(gaps: jax.Array, rest: jax.Array) -> jax.Array:
    """Return the level with ``sum(minimum(level, gaps)) == rest``; of a larger rest, a high one.

    With the gaps up to any one of them full, the others share what these leave: too little unless
    those are the right ones. So the level is the largest such share.
    """
    full = gaps[None, :] <= gaps[:, None]
    others = jnp.sum(~full, axis=1, dtype=jnp.int32)
    left = rest - jnp.sum(jnp.where(full, gaps[None, :], 0.0), axis=1)
    shares = jnp.where(others > 0, left / jnp.maximum(others, 1).astype(jnp.float32), 0.0)
    return jnp.maximum(jnp.max(shares), rest / np.float32(len(gaps)))
