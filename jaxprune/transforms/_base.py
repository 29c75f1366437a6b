"""The one shape of every sparse-training transform: what a recipe fills in, and the common steps."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune._core import paths
from jaxprune._core.packing import check_packable, is_packed, pack
from jaxprune._core.prunable import Where, select
from jaxprune._core.select import split_over
from jaxprune.transforms._copies import copied_leaves, zero_copies
from jaxprune.transforms._state import NEVER, Health, Method, State, fingerprint_of, stored_masks
from jaxprune.transforms._timetable import Timetable, gate
from jaxprune.types import Tree

Leaves = dict[str, jax.Array]
"""Arrays of the prunable parameters, by path."""


class Moment(NamedTuple):
    """What a recipe sees when masks change."""

    step: jax.Array  # () int32
    index: jax.Array  # () int32, the number of this update, from 0
    params: Tree  # the prunable parameters; MaskedNode elsewhere
    grads: Tree  # their gradients, dense; MaskedNode elsewhere
    masks: Leaves  # the masks so far
    extra: Tree


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a method does; everything else is common.

    Attributes:
      method: its static description.
      text: names the recipe and all its settings; two recipes with equal texts are equal.
      where: which parameters are prunable.
      timetable: when masks change.
      init_masks: masks at the start, from ``{path: weight}``.
      new_masks: masks at an update.
      mask_gradients: give the inner optimizer zero gradients for pruned weights.
      packed: store one bit a weight.
      axis_names: mesh axes that split one weight inside ``shard_map``; None to read them.
      starts_changed: the first masks are a change, so that the second call looks at their health.
    """

    method: Method
    text: str
    where: Where
    timetable: Timetable
    init_masks: Callable[[Leaves], Leaves]
    new_masks: Callable[[Moment], Leaves]
    mask_gradients: bool = False
    packed: bool = False
    axis_names: Sequence[str] | None = None
    starts_changed: bool = False


def wrap(inner: optax.GradientTransformation, recipe: Recipe) -> Any:
    """Return the transform that trains with ``inner`` and keeps weights sparse by a recipe."""
    _check_inner(inner)
    extended = optax.with_extra_args_support(inner)

    def init(params: Tree) -> State:
        weights = select(params, recipe.where)
        inner_state = inner.init(params)
        _check_no_multi_steps(inner_state)
        leaves = np.zeros(len(weights), np.int32)
        start = 0 if recipe.starts_changed else NEVER
        return State(
            step=jnp.zeros((), jnp.int32),
            masks=_stored(params, recipe.init_masks(weights), recipe.packed),
            health=Health(jnp.asarray(start, jnp.int32), jnp.asarray(leaves), jnp.asarray(leaves)),
            fingerprint=fingerprint_of(recipe.text),
            method=recipe.method,
            extra=(),
            inner_state=inner_state,
        )

    def update(
        updates: Tree, state: State, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, State]:
        weights, grads = _matched(params, updates, state)
        masks = stored_masks(state)
        given = _masked_gradients(updates, grads, masks) if recipe.mask_gradients else updates
        steps, inner_state = extended.update(given, state.inner_state, params, **extra_args)
        fires = recipe.timetable.fires(state.step)

        def changed() -> Leaves:
            index = recipe.timetable.index(state.step)
            of = lambda leaves: paths.refill(params, leaves)
            moment = Moment(state.step, index, of(weights), of(grads), masks, state.extra)
            with split_over(recipe.axis_names):
                return recipe.new_masks(moment)

        new = gate(fires, changed, masks)
        inner_state = zero_copies(inner_state, copied_leaves(inner, params), new)
        landing = {p: _landing(m, s, weights[p]) for (p, m), s in _with_steps(new, steps)}
        state = state._replace(
            step=optax.safe_increment(state.step),
            masks=_stored(params, new, recipe.packed),
            health=_examined(state, fires, weights, masks),
            inner_state=inner_state,
        )
        return paths.refill(steps, landing, lambda path, leaf: leaf), state

    return optax.GradientTransformationExtraArgs(init, update)


def _check_inner(inner: Any) -> None:
    if not (callable(getattr(inner, "init", None)) and callable(getattr(inner, "update", None))):
        raise TypeError(
            f"inner must be an optax optimizer, got {type(inner).__name__}. "
            "Wrap one: jaxprune.gradual(optax.adamw(1e-3), ...)."
        )


def _check_no_multi_steps(inner_state: Any) -> None:
    is_multi = lambda node: isinstance(node, optax.MultiStepsState)
    if any(is_multi(node) for node in jax.tree.leaves(inner_state, is_leaf=is_multi)):
        raise ValueError(
            "inner holds optax.MultiSteps: the schedule would count micro-steps. Put MultiSteps "
            "outside: optax.MultiSteps(jaxprune.gradual(inner, ...), every_k_schedule=k)."
        )


def _stored(params: Tree, masks: Leaves, packed: bool) -> Tree:
    if packed:
        for path, mask in masks.items():
            check_packable(path, mask)
        return paths.refill(params, {path: pack(mask) for path, mask in masks.items()})
    return paths.refill(params, masks)


def _matched(params: Tree | None, updates: Tree, state: State) -> tuple[Leaves, Leaves]:
    """Return the prunable parameters and their gradients, by path."""
    if params is None:
        raise ValueError(
            "update was called without params. A pruned weight is set to zero by the update "
            "-param: call tx.update(grads, opt_state, params)."
        )
    present = jax.tree.map(lambda m: 0, state.masks, is_leaf=is_packed)
    needed = paths.flatten(present)
    found = {"params": paths.flatten(params), "grads": paths.flatten(updates)}
    for name, leaves in found.items():
        missing = [path for path in needed if path not in leaves]
        if missing:
            raise ValueError(
                f"{name} has no leaf for the masks of {paths.listed(missing)}; its leaves are "
                f"{paths.listed(leaves)}. Pass the {name} of the model that tx.init saw."
            )
    weights, grads = ({path: leaves[path] for path in needed} for leaves in found.values())
    return weights, grads


def _masked_gradients(updates: Tree, grads: Leaves, masks: Leaves) -> Tree:
    masked = {p: jnp.where(m, grads[p], jnp.zeros_like(grads[p])) for p, m in masks.items()}
    return paths.refill(updates, masked, lambda path, leaf: leaf)


def _with_steps(masks: Leaves, steps: Tree) -> Any:
    leaves = paths.flatten(steps)
    return (((path, mask), leaves[path]) for path, mask in masks.items())


def _landing(mask: jax.Array, step: jax.Array, weight: jax.Array) -> jax.Array:
    """Return the update that moves a kept weight by ``step`` and a pruned one to exactly zero.

    ``w + (−w)`` is exactly 0 in every floating-point format, if the update can hold ``−w``.
    """
    with jax.numpy_dtype_promotion("standard"):
        wide = jnp.promote_types(step.dtype, weight.dtype)
    return jnp.where(mask, step.astype(wide), -weight.astype(wide))


def _examined(state: State, fires: jax.Array, weights: Leaves, masks: Leaves) -> Health:
    """Count pruned weights that came back, on the call after a change of masks."""
    health = state.health

    def counts() -> tuple[jax.Array, jax.Array]:
        back, wild = [], []
        for path, mask in masks.items():
            weight = weights[path]
            back.append(jnp.sum(~mask & (weight != 0), dtype=jnp.int32))
            wild.append(jnp.sum(~mask & ~jnp.isfinite(weight), dtype=jnp.int32))
        found = (jnp.stack(back), jnp.stack(wild))
        return jax.tree.map(jnp.maximum, found, (health.came_back, health.nonfinite))

    seen = (health.came_back, health.nonfinite)
    if masks:
        seen = gate(health.changed == state.step - 1, counts, seen)
    return Health(jnp.where(fires, state.step, health.changed), *seen)
