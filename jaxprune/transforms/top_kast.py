"""Top-KAST: a sparse forward and a less sparse backward pass over dense weights (2106.03517)."""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from jaxprune._core.meshes import shards_of
from jaxprune._core.packing import stored, unpack
from jaxprune._core.prunable import Where, default_where
from jaxprune.masks import MaskRule
from jaxprune.schedules import as_sparsity
from jaxprune.transforms._course import Course, Stages, steady
from jaxprune.transforms._ranking import tabulated
from jaxprune.transforms._state import Method
from jaxprune.transforms._straight import _Named
from jaxprune.transforms._timetable import Timetable, as_period, gate
from jaxprune.transforms.recipe import Leaves, Moment, Recipe, everything, wrap
from jaxprune.types import Shapes, Tree


def top_kast(
    inner: optax.GradientTransformation,
    sparsity: float,
    *,
    backward_sparsity: float,
    decay: float = 1e-4,
    every: int = 1,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Train with a sparse forward pass, and update a larger set of weights (Top-KAST).

    Per layer, A holds the ``(1 − sparsity) · n`` largest magnitudes and B ⊇ A the
    ``(1 − backward_sparsity) · n`` largest. The loss sees the weights of A (train with
    `jaxprune.value_and_grad` or `jaxprune.forward_params`); B receives

      ``g + decay · w`` in A, ``g + decay · w / (1 − sparsity)`` in B outside A,

    and all other weights stay as they are, bit for bit.

    Args:
      inner: the optimizer to wrap; its own weight decay is additional. The paper uses plain SGD.
      sparsity: of the forward pass, in [0, 1).
      backward_sparsity: of the updates, in [0, sparsity].
      decay: strength of the penalty, 0 or more. It enters through the gradient: plain SGD shrinks
        a weight of A by ``learning rate · decay``, Adam normalises it.
      every: steps between new choices of A and B; the paper found 1 and 100 equally good.
      where: as in `jaxprune.make_masks`.
      layers: as in `jaxprune.make_masks`.
      packed: as in `jaxprune.gradual`.

    Returns:
      An optax transform. Parameters are stored dense; `jaxprune.get_masks` gives A as of the last
      call, and `jaxprune.final_params` keeps the A of the given parameters. B adds a byte a
      weight to the state, or a bit if packed.

    Raises:
      ValueError: a number out of range, a backward sparsity above the forward one, or use inside
        ``shard_map``.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> params = {"kernel": jnp.array([[4.0, 3.0, 2.0, 1.0]])}
      >>> tx = jaxprune.top_kast(optax.sgd(1.0), 0.75, backward_sparsity=0.5, decay=0.125)
      >>> opt_state = tx.init(params)
      >>> jaxprune.forward_params(params, opt_state)["kernel"].tolist()
      [[4.0, 0.0, 0.0, 0.0]]
      >>> updates, opt_state = tx.update({"kernel": jnp.zeros((1, 4))}, opt_state, params)
      >>> optax.apply_updates(params, updates)["kernel"].tolist()
      [[3.5, 1.5, 2.0, 1.0]]

    Reference:
      Jayakumar et al., Top-KAST: Top-K always sparse training, arXiv:2106.03517.
    """
    sparsity = as_sparsity("sparsity", sparsity)
    backward_sparsity = as_sparsity("backward_sparsity", backward_sparsity)
    _check_numbers(sparsity, backward_sparsity, decay)
    every = as_period("every", every)
    rule, timetable = MaskRule(layers=dict(layers or {})), Timetable(0, every, None)

    def export(path: str, weight: jax.Array, mask: jax.Array, step: jax.Array) -> jax.Array:
        del mask, step
        return _largest(rule, path, weight, sparsity)

    def forward(path: str, weight: jax.Array, mask: jax.Array, step: jax.Array) -> jax.Array:
        kept = export(path, weight, mask, step) if every == 1 else mask
        return jnp.where(kept, weight, jnp.zeros_like(weight))

    sets = functools.partial(_sets, rule)

    def init(weights: Leaves) -> tuple[Leaves, Tree]:
        rule.check({path: weight.shape for path, weight in weights.items()})
        return sets(weights, sparsity), stored(sets(weights, backward_sparsity), packed=packed)

    def watch(moment: Moment) -> Tree:
        def chosen() -> Tree:
            return stored(sets(moment.weights, backward_sparsity), packed=packed)

        return gate(timetable.fires(moment.step), chosen, moment.extra)

    def change(moment: Moment) -> tuple[Leaves, Tree]:
        return sets(moment.weights, sparsity), moment.extra

    def gradients(moment: Moment) -> Leaves:
        # With every=1 the stored one is that of the weights before the last update.
        forward_set = sets(moment.weights, sparsity) if every == 1 else moment.masks
        return {p: _penalised(moment, p, a, decay, sparsity) for p, a in forward_set.items()}

    text = f"top_kast|{sparsity}|{backward_sparsity}|{decay}|{every}|{rule.describe()}"
    seen, exported = _Named(text, forward), _Named(f"{text}|export", export)
    recipe = Recipe(
        method=Method("top_kast", None, seen, exported, _course(rule, sparsity, backward_sparsity)),
        text=text,
        where=where,
        timetable=timetable,
        init=init,
        change=change,
        watch=watch,
        gradients=gradients,
        land=_land_in_backward_set,
        packed=packed,
    )
    return wrap(inner, recipe)


def _course(rule: MaskRule, *shares: float) -> Course:
    """Return the course of a method that sees one set and updates another."""

    def stages(shapes: Shapes, steps: int | None) -> Stages:
        del steps
        live = rule.live(shapes, tabulated(rule, shapes, shares, None))
        seen, graded = ({path: row[i] for path, row in live.items()} for i in range(2))
        return steady(seen, graded)

    return Course(stages, rule)


def _largest(rule: MaskRule, path: str, weight: jax.Array, share: float) -> jax.Array:
    counts = rule.counts({path: weight.shape}, share)
    return rule.masks({path: jnp.abs(weight)}, counts)[path]


def _sets(rule: MaskRule, weights: Leaves, share: float) -> Leaves:
    """Return the set of the largest magnitudes of each weight, at a share of zeros."""
    _refuse_shards(weights)
    return {p: _largest(rule, p, w, share) & everything(w) for p, w in weights.items()}


def _penalised(
    moment: Moment, path: str, kept: jax.Array, decay: float, sparsity: float
) -> jax.Array:
    """Return the gradient with the exploration penalty, and zero outside the backward set."""
    grad, weight = moment.grads[path], moment.weights[path]
    exploring = jnp.asarray(decay / (1.0 - sparsity), weight.dtype)
    pull = weight * jnp.where(kept, jnp.asarray(decay, weight.dtype), exploring)
    pulled = grad + pull.astype(grad.dtype)
    return jnp.where(unpack(moment.extra[path]), pulled, jnp.zeros_like(grad))


def _land_in_backward_set(moment: Moment, steps: Leaves) -> Leaves:
    """Move the backward set; adding −0.0 leaves every other weight as it is, −0.0 included.

    The forward set, which is part of it, is named so that weights are updated after it is chosen.
    """
    moves = {path: unpack(moment.extra[path]) | mask for path, mask in moment.masks.items()}
    return {p: jnp.where(moves[p], step, jnp.full_like(step, -0.0)) for p, step in steps.items()}


def _refuse_shards(weights: Leaves) -> None:
    for path, weight in weights.items():
        if shards_of(weight) > 1:
            raise ValueError(
                f"top_kast ranks all weights of a layer, and inside shard_map {path!r} is split "
                "over several shards. Call update under jit with sharded arrays instead."
            )


def _check_numbers(sparsity: float, backward_sparsity: float, decay: float) -> None:
    if backward_sparsity > sparsity:
        raise ValueError(
            f"backward_sparsity={backward_sparsity} must not be above sparsity={sparsity}: the "
            "weights that the forward pass sees are among those that are updated."
        )
    if not (math.isfinite(decay) and decay >= 0.0):
        raise ValueError(
            f"decay must be a finite number of 0 or more, got {decay}. It pulls weights to zero, "
            "those that only explore the more; the paper uses 1e-4."
        )
