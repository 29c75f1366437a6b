"""What straight-through methods share: dense weights, a mask in front of the forward pass."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune._core.prunable import Where
from jaxprune.masks import MaskRule
from jaxprune.transforms._course import Course, Stages, sizes_of, steady
from jaxprune.transforms._ranking import tabulated
from jaxprune.transforms._state import Look, Method
from jaxprune.transforms.recipe import (
    Leaves,
    Moment,
    Recipe,
    dense_gradients,
    stay_dense,
    wrap,
)
from jaxprune.types import Shapes, Tree


@dataclasses.dataclass(frozen=True)
class _Named:
    """A function that is told from others by a text, so that a state's metadata can be compared."""

    text: str
    call: Look = dataclasses.field(compare=False, repr=False)

    def __call__(self, path: str, weight: jax.Array, mask: jax.Array, step: jax.Array) -> jax.Array:
        return self.call(path, weight, mask, step)


@dataclasses.dataclass(frozen=True)
class Straight:
    """A straight-through method.

    Attributes:
      name: the transform.
      text: names all its settings.
      rule: pattern and layers; each pattern has a sparsity of its own.
      where: which parameters are prunable.
      present: ``(path, weight, step) -> mask`` of the forward pass at a step.
      pruned_share: ``step -> share`` of a pruned weight that the forward pass still sees, or None
        for none.
      decay: strength of the pull of pruned weights to zero, added to their gradients.
      reached: the step from which the final pattern holds, or None from the start.
      packed: store masks as one bit a weight.
      stages: the counts of `Course`, or None where they follow from ``pruned_share``.
      check: raises for ``{path: shape}`` that the method does not fit, beyond its patterns.
    """

    name: str
    text: str
    rule: MaskRule
    where: Where
    present: Callable[[str, jax.Array, jax.Array], jax.Array]
    pruned_share: Callable[[jax.Array], jax.Array] | None = None
    decay: float = 0.0
    reached: int | None = None
    packed: bool = False
    stages: Callable[[Shapes], Stages] | None = None
    check: Callable[[dict[str, tuple[int, ...]]], None] = lambda shapes: None


def final_mask(rule: MaskRule, path: str, weight: jax.Array) -> jax.Array:
    """Return the mask of a weight by magnitude, in its pattern's own sparsity."""
    counts = rule.counts({path: weight.shape}, rule.pattern_of(path).final_sparsity)
    return rule.masks({path: jnp.abs(weight)}, counts)[path]


def check_patterns(rule: MaskRule, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise if a pattern does not fit its parameter, or has no sparsity of its own."""
    rule.check(shapes)
    for path in shapes:
        pattern = rule.pattern_of(path)
        if pattern.final_sparsity is None:
            raise ValueError(
                f"pattern={pattern!r} of {path!r} has no sparsity of its own. "
                "Pass NM(n, m), or {regex: NM(n, m)}, or exclude this parameter with where=."
            )


def train_straight_through(
    inner: optax.GradientTransformation, method: Straight
) -> optax.GradientTransformationExtraArgs:
    """Return the transform of a straight-through method."""

    def forward(path: str, weight: jax.Array, mask: jax.Array, step: jax.Array) -> jax.Array:
        del mask  # that of the weights before the last update
        kept = method.present(path, weight, step)
        rest = jnp.zeros_like(weight)
        if method.pruned_share is not None:
            rest = weight * method.pruned_share(step).astype(weight.dtype)
        return jnp.where(kept, weight, rest)

    def export(path: str, weight: jax.Array, mask: jax.Array, step: jax.Array) -> jax.Array:
        del mask, step
        return final_mask(method.rule, path, weight)

    def masks_of(weights: Leaves, step: jax.Array) -> Leaves:
        return {path: method.present(path, weight, step) for path, weight in weights.items()}

    def init(weights: Leaves) -> tuple[Leaves, Tree]:
        shapes = {path: weight.shape for path, weight in weights.items()}
        check_patterns(method.rule, shapes)
        method.check(shapes)
        return masks_of(weights, jnp.zeros((), jnp.int32)), ()

    def change(moment: Moment) -> tuple[Leaves, Tree]:
        return masks_of(moment.weights, moment.step), moment.extra

    def pulled(moment: Moment) -> Leaves:
        masks = masks_of(moment.weights, moment.step)
        return {path: _pulled(method.decay, masks[path], moment, path) for path in masks}

    def stages(shapes: Shapes, steps: int | None) -> Stages:
        del steps
        return (method.stages or functools.partial(_fading, method))(shapes)

    course = Course(stages, method.rule)
    seen, exported = _Named(method.text, forward), _Named(f"{method.text}|export", export)
    recipe = Recipe(
        method=Method(method.name, method.reached, seen, exported, course),
        text=method.text,
        where=method.where,
        timetable=None,
        init=init,
        change=change,
        gradients=pulled if method.decay else dense_gradients,
        land=stay_dense,
        packed=method.packed,
    )
    return wrap(inner, recipe)


def live_of(rule: MaskRule, shapes: Shapes) -> dict[str, float]:
    """Return the weights that each pattern keeps, in its own sparsity."""
    live: dict[str, float] = {}
    for path, shape in shapes.items():
        table = tabulated(rule, {path: shape}, [rule.pattern_of(path).final_sparsity or 0.0], None)
        live[path] = float(rule.live({path: shape}, table)[path][0])
    return live


def _fading(method: Straight, shapes: Shapes) -> Stages:
    """Return the counts of a mask that stays, or that is dense until pruned weights have faded."""
    live, sizes = live_of(method.rule, shapes), sizes_of(shapes)
    final = steady(live, sizes)  # a straight-through gradient is that of all weights
    if method.pruned_share is None or method.reached is None:
        return final
    shares = np.asarray(method.pruned_share(jnp.arange(method.reached + 1)))
    first = np.asarray([0, int(np.argmax(shares == 0.0))], np.int64)
    seen = {path: np.asarray([sizes[path], live[path]]) for path in shapes}
    graded = {path: np.full(2, size) for path, size in sizes.items()}
    return Stages(first, seen, graded)


def _pulled(decay: float, mask: jax.Array, moment: Moment, path: str) -> jax.Array:
    grad, weight = moment.grads[path], moment.weights[path]
    # In 16 bits the product with a decay of 2e-4 would lose most of its digits.
    with jax.numpy_dtype_promotion("standard"):
        wide = jnp.promote_types(grad.dtype, jnp.float32)
    pulled = grad.astype(wide) + weight.astype(wide) * jnp.asarray(decay, wide)
    return jnp.where(mask, grad, pulled.astype(grad.dtype))
