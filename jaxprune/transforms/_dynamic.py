"""`jaxprune.dynamic` under any name: the recipe of methods that drop a share and grow as much."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax

from jaxprune import scores
from jaxprune._core.packing import stored, unpack
from jaxprune._core.prunable import Where
from jaxprune.masks import MaskRule, Patterns
from jaxprune.transforms._regrow import (
    Budget,
    Settings,
    checked_allocation,
    checked_growth,
    checked_sparsity,
    course_of,
    every_few,
    random_masks,
    regrown,
)
from jaxprune.transforms._state import Method
from jaxprune.transforms.drops import Drop, as_drop
from jaxprune.transforms.growth import Growth, Momentum
from jaxprune.transforms.moments import Moments
from jaxprune.transforms.recipe import Leaves, Moment, Recipe, masked_gradients, wrap
from jaxprune.types import Allocation, Score, Shapes, Tree


class Memory(NamedTuple):
    """What drop-and-grow methods keep besides masks; () where a method has no use for it."""

    momentum: Tree  # by path, float32, of the dense gradients
    fired: Tree  # masks by path, as they are stored: weights that have ever been live


def settings_of(
    sparsity: float,
    *,
    every: int,
    end: int,
    begin: int | None,
    drop: Drop,
    growth: Growth,
    pattern: Patterns,
    allocation: Allocation,
    where: Where,
    layers: Mapping[str, int] | None,
    moments: Moments,
    regrow: bool,
    seed: int,
    packed: bool,
    axis_names: Sequence[str] | None,
    shapes: Shapes | None,
    score: Score = scores.magnitude,
    track_fired: bool = False,
) -> Settings:
    """Return the checked arguments of `jaxprune.dynamic`.

    With ``track_fired`` the transform keeps a record of all weights that were ever live.
    """
    return Settings(
        sparsity=checked_sparsity(sparsity, pattern),
        timetable=every_few(every, begin, end),
        drop=as_drop(drop),
        growth=checked_growth(growth),
        score=score,
        rule=MaskRule(pattern, checked_allocation("allocation", allocation), dict(layers or {})),
        where=where,
        moments=moments,
        regrow=regrow,
        seed=seed,
        packed=packed,
        axis_names=axis_names,
        shapes=shapes,
        track_fired=track_fired,
    )


def dynamic_named(
    name: str, inner: optax.GradientTransformation, settings: Settings
) -> optax.GradientTransformationExtraArgs:
    """Return the transform under the name that the user has called, for its state and errors."""
    budget = Budget(settings)

    def init(weights: Leaves) -> tuple[Leaves, Tree]:
        settings.rule.check({path: weight.shape for path, weight in weights.items()})
        masks = random_masks(settings, weights, budget.units(weights) if weights else {})
        return masks, _first_memory(settings, weights, masks)

    def change(moment: Moment) -> tuple[Leaves, Tree]:
        masks = regrown(settings, moment, budget.at(moment))
        return masks, _with_fired(settings, moment.extra, masks)

    recipe = Recipe(
        method=Method(name, reached=settings.timetable.end, course=course_of(settings)),
        text=settings.text(name),
        where=settings.where,
        timetable=settings.timetable,
        init=init,
        change=change,
        watch=functools.partial(_watch, settings),
        gradients=masked_gradients,
        moments=settings.moments,
        packed=settings.packed,
        axis_names=settings.axis_names,
        starts_changed=True,
    )
    return wrap(inner, recipe)


def _first_memory(settings: Settings, weights: Leaves, masks: Leaves) -> Memory:
    growth = settings.growth
    memory = Memory(growth.start(weights) if isinstance(growth, Momentum) else (), ())
    if not settings.track_fired:
        return memory
    # A copy: a donated state may not hold a buffer two times.
    fired = {path: jnp.copy(mask) for path, mask in masks.items()}
    return memory._replace(fired=stored(fired, packed=settings.packed))


def _watch(settings: Settings, moment: Moment) -> Tree:
    if not isinstance(settings.growth, Momentum):
        return moment.extra
    return moment.extra._replace(
        momentum=settings.growth.watch(moment.extra.momentum, moment.grads)
    )


def _with_fired(settings: Settings, memory: Memory, masks: Leaves) -> Memory:
    if not settings.track_fired:
        return memory
    fired = {path: unpack(memory.fired[path]) | mask for path, mask in masks.items()}
    return memory._replace(fired=stored(fired, packed=settings.packed))
