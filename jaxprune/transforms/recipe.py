"""The one shape of sparse-training transforms: what a recipe fills in, and the common steps."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxprune._core import paths
from jaxprune._core.meshes import known_axes, shards, split_over
from jaxprune._core.packing import is_packed, stored, unpack
from jaxprune._core.prunable import Where, select
from jaxprune._core.search import total
from jaxprune._core.turns import once_there
from jaxprune.transforms._copies import copied_leaves, zero_copies
from jaxprune.transforms._state import (
    NEVER,
    Health,
    Method,
    State,
    by_path,
    fingerprint_of,
    like_params,
    no_news,
    stored_masks,
)
from jaxprune.transforms._timetable import Timetable, gate
from jaxprune.transforms.moments import Moments
from jaxprune.types import Tree

Leaves = dict[str, jax.Array]
"""Arrays of the prunable parameters, by path."""


class Moment(NamedTuple):
    """What a recipe sees in one call of update."""

    step: jax.Array  # () int32, calls before this one
    turn: jax.Array  # () int32, the number of this change of masks, from 0
    weights: Leaves  # the prunable parameters
    grads: Leaves  # their gradients, dense
    masks: Leaves  # True = kept
    extra: Tree  # the method's own state
    fill: Callable[[Leaves], Tree]  # puts leaves into the parameters' container, for scores


def everything(weight: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """Return a mask that keeps a whole weight, with the weight's sharding.

    The condition is always true, NaN included, and no compiler folds it into a constant, which
    would live on one device. A weight that is a shape without values gets an array, as it gets
    moments from optax.

    Args:
      weight: floating-point array, or ``jax.ShapeDtypeStruct``.

    Returns:
      Boolean array of the weight's shape, all True.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> jaxprune.transforms.everything(jnp.array([1.0, jnp.nan])).tolist()
      [True, True]
    """
    if isinstance(weight, jax.ShapeDtypeStruct):
        return jnp.ones(weight.shape, bool)
    return (weight == weight) | (weight != weight)


def dense_gradients(moment: Moment) -> Leaves:
    """Let the inner optimizer see the gradients of all weights.

    Args:
      moment: the present weights, gradients and masks.

    Returns:
      ``{path: gradient}``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import transforms
      >>> leaves = {"w": jnp.array([1.0, 2.0])}
      >>> masks, zero = {"w": jnp.array([True, False])}, jnp.zeros((), jnp.int32)
      >>> moment = transforms.Moment(zero, zero, leaves, leaves, masks, (), dict)
      >>> transforms.dense_gradients(moment)["w"].tolist()
      [1.0, 2.0]
    """
    return moment.grads


def masked_gradients(moment: Moment) -> Leaves:
    """Let the inner optimizer see zero gradients for pruned weights.

    Args:
      moment: the present weights, gradients and masks.

    Returns:
      ``{path: gradient}``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import transforms
      >>> leaves = {"w": jnp.array([1.0, 2.0])}
      >>> masks, zero = {"w": jnp.array([True, False])}, jnp.zeros((), jnp.int32)
      >>> moment = transforms.Moment(zero, zero, leaves, leaves, masks, (), dict)
      >>> transforms.masked_gradients(moment)["w"].tolist()
      [1.0, 0.0]
    """
    grads = moment.grads
    return {p: jnp.where(m, grads[p], jnp.zeros_like(grads[p])) for p, m in moment.masks.items()}


def land_on_zero(moment: Moment, steps: Leaves) -> Leaves:
    """Move kept weights by the inner optimizer's step, and pruned ones to exactly zero.

    ``w + (−w)`` is exactly 0 in every floating-point format, if the update can hold ``−w``.

    Args:
      moment: the present weights, gradients and masks.
      steps: ``{path: update}`` of the inner optimizer.

    Returns:
      ``{path: update}``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import transforms
      >>> leaves = {"w": jnp.array([1.0, 2.0])}
      >>> masks, zero = {"w": jnp.array([True, False])}, jnp.zeros((), jnp.int32)
      >>> moment = transforms.Moment(zero, zero, leaves, leaves, masks, (), dict)
      >>> transforms.land_on_zero(moment, {"w": jnp.array([0.5, 0.5])})["w"].tolist()
      [0.5, -2.0]
    """
    return {p: _landing(m, steps[p], moment.weights[p]) for p, m in moment.masks.items()}


def stay_dense(moment: Moment, steps: Leaves) -> Leaves:
    """Move all weights by the inner optimizer's step: the method stores dense parameters.

    Args:
      moment: the present weights, gradients and masks.
      steps: ``{path: update}`` of the inner optimizer.

    Returns:
      ``{path: update}``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import transforms
      >>> leaves = {"w": jnp.array([1.0, 2.0])}
      >>> masks, zero = {"w": jnp.array([True, False])}, jnp.zeros((), jnp.int32)
      >>> moment = transforms.Moment(zero, zero, leaves, leaves, masks, (), dict)
      >>> transforms.stay_dense(moment, {"w": jnp.array([0.5, 0.5])})["w"].tolist()
      [0.5, 0.5]
    """
    return {path: _after(mask, steps[path]) for path, mask in moment.masks.items()}


def _after(mask: jax.Array, step: jax.Array) -> jax.Array:
    """Return a step as it is, and let it wait for the mask.

    A mask is made from the weight; compilers that update a donated weight first must copy it. They
    do not fold this into the step alone, which might not be a number.
    """
    return jnp.where(mask | (step == step), step, jnp.full_like(step, jnp.nan))


def _landing(mask: jax.Array, step: jax.Array, weight: jax.Array) -> jax.Array:
    with jax.numpy_dtype_promotion("standard"):
        wide = jnp.promote_types(step.dtype, weight.dtype)
    return jnp.where(mask, step.astype(wide), -weight.astype(wide))


def _keep_extra(moment: Moment) -> Tree:
    return moment.extra


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a method does; everything else is common.

    One call of update: ``watch`` -> ``change``, at the timetable's steps -> ``moments`` ->
    ``gradients`` -> the inner optimizer -> ``land``.

    Attributes:
      method: its static description.
      text: names the recipe and all its settings; two recipes with equal texts are equal.
      where: which parameters are prunable.
      timetable: when ``change`` runs; None for every call.
      init: first masks and the method's own state, from ``{path: weight}``. What that state holds
        by path, too, is stored in the parameters' container.
      change: the new masks and the method's own state.
      watch: the method's own state after a look at the gradients, in every call.
      gradients: gradients of the prunable weights that the inner optimizer sees; the masks that it
        is given are True for weights that are live before and after this call.
      moments: what the inner optimizer's state becomes where masks change, before its step.
      land: updates of the prunable weights, given the inner optimizer's.
      packed: store one bit a weight.
      axis_names: mesh axes that split one weight inside ``shard_map``; None to read them.
      starts_changed: the first masks are a change, so that the second call looks at their health.
    """

    method: Method
    text: str
    where: Where
    timetable: Timetable | None
    init: Callable[[Leaves], tuple[Leaves, Tree]]
    change: Callable[[Moment], tuple[Leaves, Tree]]
    watch: Callable[[Moment], Tree] = _keep_extra
    gradients: Callable[[Moment], Leaves] = dense_gradients
    moments: Moments | None = None
    land: Callable[[Moment, Leaves], Leaves] = land_on_zero
    packed: bool = False
    axis_names: Sequence[str] | None = None
    starts_changed: bool = False


def wrap(
    inner: optax.GradientTransformation, recipe: Recipe
) -> optax.GradientTransformationExtraArgs:
    """Return the transform that trains with ``inner`` and keeps weights sparse by a recipe.

    Args:
      inner: the optimizer to wrap.
      recipe: what the method does.

    Returns:
      An optax transform whose state is a `State`.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from jaxprune import transforms
      >>> recipe = transforms.Recipe(
      ...     method=transforms.Method("negative"),
      ...     text="prune what is negative at steps 0 and 1",
      ...     where=".*",
      ...     timetable=transforms.Timetable(begin=0, every=1, end=1),
      ...     init=lambda ws: ({p: transforms.everything(w) for p, w in ws.items()}, ()),
      ...     change=lambda moment: ({p: w >= 0 for p, w in moment.weights.items()}, ()),
      ... )
      >>> tx = transforms.wrap(optax.sgd(0.0), recipe)
      >>> params = {"kernel": jnp.array([[1.0, -2.0]])}
      >>> updates, opt_state = tx.update(params, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["kernel"].tolist()
      [[1.0, 0.0]]
    """
    _check_inner(inner, recipe.method.name)
    extended = optax.with_extra_args_support(inner)

    def init(params: Tree) -> Any:
        weights = select(params, recipe.where)
        inner_state = _initialised(inner, params)
        _check_no_multi_steps(inner_state, recipe.method.name)
        masks, extra = recipe.init(weights)
        return State(
            step=jnp.zeros((), jnp.int32),
            masks=paths.refill(params, stored(masks, packed=recipe.packed)),
            health=no_news(len(weights), 0 if recipe.starts_changed else NEVER),
            fingerprint=fingerprint_of(recipe.text),
            method=recipe.method,
            extra=like_params(params, masks, extra),
            inner_state=inner_state,
        )

    def update(
        updates: Tree, state: Any, params: Tree = None, **extra_args: Any
    ) -> tuple[Tree, Any]:
        moment = _moment(recipe, updates, state, params)
        moment = moment._replace(extra=recipe.watch(moment))
        fires = _with_gradients(_fires(recipe, moment), moment.grads)
        after, held, health = _changed(recipe, moment, state, fires)
        inner_state = state.inner_state
        # Before the optimizer's step, to be one pass with it; after it, compilers copy the moments.
        # Weights whose mask changes get no gradient in this call, and stay as they are moved.
        if recipe.moments is not None and (isinstance(fires, Tracer) or bool(fires)):
            start = inner.init(params)
            with split_over(recipe.axis_names):
                inner_state = recipe.moments(inner_state, start, moment.masks, after.masks, fires)
        live = {path: mask & after.masks[path] for path, mask in moment.masks.items()}
        grads = recipe.gradients(moment._replace(masks=live))
        given = paths.refill(updates, grads, _itself)
        steps, inner_state = extended.update(given, inner_state, params, **extra_args)
        copies = copied_leaves(inner, params) if recipe.land is land_on_zero else {}
        landed = recipe.land(after, _of_prunable(steps, after.masks))
        state = state._replace(
            step=optax.safe_increment(state.step),
            masks=paths.refill(params, held),
            health=health,
            extra=like_params(params, after.masks, after.extra),
            inner_state=zero_copies(inner_state, copies, after.masks),
        )
        return paths.refill(steps, landed, _itself), state

    return optax.GradientTransformationExtraArgs(init, update)


def _itself(path: str, leaf: Any) -> Any:
    del path
    return leaf


def _moment(recipe: Recipe, updates: Tree, state: State, params: Tree) -> Moment:
    weights, grads = _matched(params, updates, state)
    turn = state.step if recipe.timetable is None else recipe.timetable.index(state.step)

    def fill(leaves: Leaves) -> Tree:
        return paths.refill(params, leaves)

    return Moment(state.step, turn, weights, grads, stored_masks(state), by_path(state.extra), fill)


def _changed(
    recipe: Recipe, moment: Moment, state: State, fires: jax.Array
) -> tuple[Moment, Leaves, Health]:
    """Change masks where the timetable says so; return them also as they are stored.

    Nothing but stored masks and the method's own state goes through the ``lax.cond``: what does is
    copied in every call. Health is looked at inside the same one: whatever reads the weights must
    come before what is computed from the masks, or the compiler copies donated parameters.
    """
    health = state.health
    before = (paths.flatten(state.masks, is_packed), moment.extra)
    seen = (health.came_back, health.nonfinite)
    lands = recipe.land is land_on_zero and bool(moment.masks)
    due = health.changed == moment.step - 1 if lands else jnp.bool_(False)

    def change() -> tuple[Leaves, Tree]:
        with split_over(recipe.axis_names):
            masks, extra = recipe.change(moment)
        return stored(masks, packed=recipe.packed), extra

    def examine() -> tuple[jax.Array, jax.Array]:
        with split_over(recipe.axis_names):
            return jax.tree.map(jnp.maximum, _not_zero(moment), seen)

    def both() -> Any:
        found = gate(due, examine, seen) if lands else seen
        return gate(fires, change, before), found

    (held, extra), seen = gate(fires | due, both, (before, seen))
    masks = {path: unpack(mask) for path, mask in held.items()}
    changed = jnp.where(fires, moment.step, health.changed)
    return moment._replace(masks=masks, extra=extra), held, Health(changed, *seen)


def _fires(recipe: Recipe, moment: Moment) -> jax.Array:
    return jnp.bool_(True) if recipe.timetable is None else recipe.timetable.fires(moment.step)


def _with_gradients(fires: jax.Array, grads: Leaves) -> jax.Array:
    """Return whether masks change, which is known once the first weight's gradient is there.

    Before, new masks would take a byte a weight while the backward pass runs. The first weight's
    gradient is, as a rule, the last to be computed; those of stacked layers come all at once.
    """
    if not isinstance(fires, Tracer) or not grads:
        return fires
    return once_there(fires, next(iter(grads.values())))


def _not_zero(moment: Moment) -> tuple[jax.Array, jax.Array]:
    """Count, per weight, the pruned entries that came back and those that are not finite."""
    back, wild = [], []
    for path, mask in moment.masks.items():
        weight = moment.weights[path]
        conditions = [~mask & (weight != 0), ~mask & ~jnp.isfinite(weight)]
        names = known_axes(mask)
        one, other = total(conditions, names, shards(names))
        back.append(one)
        wild.append(other)
    return jnp.stack(back), jnp.stack(wild)


def _check_inner(inner: Any, name: str) -> None:
    if not (callable(getattr(inner, "init", None)) and callable(getattr(inner, "update", None))):
        raise TypeError(
            f"inner must be an optax optimizer, got {type(inner).__name__}. "
            f"Wrap one: {name}(optax.adamw(1e-3), ...)."
        )


def _initialised(inner: optax.GradientTransformation, params: Tree) -> Any:
    """Return the inner optimizer's first state; name the leaves that it cannot take."""
    try:
        return inner.init(params)
    except TypeError as error:
        leaves = paths.flatten(params).items()
        strange = [f"{p} ({type(x).__name__})" for p, x in leaves if not hasattr(x, "dtype")]
        if not strange:
            raise
        raise TypeError(
            "params holds leaves that are not arrays, and the inner optimizer does not take them: "
            f"{paths.listed(strange)}. Pass the arrays alone, as with "
            "eqx.filter(model, eqx.is_inexact_array)."
        ) from error


def _check_no_multi_steps(inner_state: Any, name: str) -> None:
    def is_multi(node: Any) -> bool:
        return isinstance(node, optax.MultiStepsState)

    if any(is_multi(node) for node in jax.tree.leaves(inner_state, is_leaf=is_multi)):
        raise ValueError(
            "inner holds optax.MultiSteps: the schedule would count micro-steps. Put MultiSteps "
            f"outside: optax.MultiSteps({name}(inner, ...), every_k_schedule=k)."
        )


def _matched(params: Tree | None, updates: Tree, state: State) -> tuple[Leaves, Leaves]:
    """Return the prunable parameters and their gradients, by path."""
    if params is None:
        raise ValueError(
            "update was called without params. A pruned weight is set to zero by the update "
            "-param: call tx.update(grads, opt_state, params)."
        )
    needed = paths.flatten(jax.tree.map(_stored_shape, state.masks, is_leaf=is_packed))
    found = {"params": paths.flatten(params), "grads": paths.flatten(updates)}
    for name, leaves in found.items():
        missing = [path for path in needed if path not in leaves]
        if missing and all(path.endswith("/bits") for path in missing):
            raise ValueError(
                f"the packed masks of {paths.listed(missing)} have lost their sizes: flax.nnx "
                "rebuilds an optimizer's state from its arrays alone. Pass packed=False with "
                "nnx.Optimizer."
            )
        if missing:
            raise ValueError(
                f"{name} has no leaf for the masks of {paths.listed(missing)}; its leaves are "
                f"{paths.listed(leaves)}. Pass the {name} of the model that tx.init saw."
            )
        for path, mask in needed.items():
            shape = jnp.shape(leaves[path])
            if not mask.fits(shape):
                raise ValueError(
                    f"{name} has shape {shape} for {path!r}, whose mask is stored as "
                    f"{mask.shape}: the masks are those of another model. Pass the {name} of the "
                    "model that tx.init saw."
                )
    weights, grads = ({path: leaves[path] for path in needed} for leaves in found.values())
    return weights, grads


@dataclasses.dataclass(frozen=True)
class _Stored:
    """The shape in which a mask is stored: bits along the last axis if it is packed."""

    shape: tuple[int, ...]
    packed: bool

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Tell whether it is that of a mask of a weight of some shape."""
        return self.shape == ((*shape[:-1], -(-shape[-1] // 8)) if self.packed else shape)


def _stored_shape(mask: Any) -> _Stored:
    return _Stored(jnp.shape(mask.bits if is_packed(mask) else mask), is_packed(mask))


def _of_prunable(tree: Tree, masks: Leaves) -> Leaves:
    leaves = paths.flatten(tree)
    return {path: leaves[path] for path in masks}
