"""Training with fixed masks: fine-tune a pruned model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune._core import paths
from jaxprune.masks import check_masks, mask_leaves
from jaxprune.transforms._course import Course, Stages, steady
from jaxprune.transforms._state import Method
from jaxprune.transforms._timetable import Timetable
from jaxprune.transforms.recipe import (
    Leaves,
    Moment,
    Recipe,
    dense_gradients,
    everything,
    masked_gradients,
    wrap,
)
from jaxprune.types import Shapes, Tree


def static(
    inner: optax.GradientTransformation,
    masks: Tree,
    *,
    mask_gradients: bool = True,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Train with fixed masks.

    ``update_t = where(mask, inner update, −param)``: after the first ``optax.apply_updates`` every
    pruned weight is exactly 0.0, also if the parameters came in dense, and stays so.

    Args:
      inner: the optimizer to wrap. ``optax.MultiSteps`` goes outside.
      masks: tree of masks, matched to the parameters by path; boolean or packed, True = kept.
        Parameters without a mask train as without the wrapper.
      mask_gradients: give ``inner`` zero gradients for pruned weights, so that optimizers that
        look at several weights at once (global-norm clipping, layer-wise scaling) see the pruned
        model.
      packed: store masks as one bit a weight along the last axis, instead of one byte.

    Returns:
      An optax transform. Its state's masks are found with `jaxprune.get_masks`.

    Raises:
      ValueError: masks that do not match the parameters, or ``optax.MultiSteps`` inside ``inner``.
      TypeError: masks that are not boolean, or ``inner`` is no optimizer.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> params, masks = jaxprune.prune({"kernel": jnp.array([[4.0, 1.0]])}, 0.5)
      >>> tx = jaxprune.static(optax.sgd(0.5), masks)
      >>> opt_state = tx.init(params)
      >>> updates, opt_state = tx.update({"kernel": jnp.ones((1, 2))}, opt_state, params)
      >>> optax.apply_updates(params, updates)["kernel"].tolist()
      [[3.5, 0.0]]
    """
    fixed = mask_leaves(masks)
    check_masks(fixed, fixed)
    if not fixed:
        raise ValueError(
            "masks holds no mask: nothing would be pruned. Make masks with jaxprune.make_masks or "
            "jaxprune.prune."
        )

    def init(weights: Leaves) -> tuple[Leaves, Tree]:
        return {path: fixed[path] & everything(w) for path, w in weights.items()}, ()

    def stages(shapes: Shapes, steps: int | None) -> Stages:
        del shapes, steps
        return steady({p: np.count_nonzero(jax.device_get(m)) for p, m in fixed.items()})

    recipe = Recipe(
        method=Method("static", course=Course(stages)),
        text=f"static|{mask_gradients}",
        where=lambda path, leaf: path in fixed,
        timetable=Timetable(begin=-1, every=1, end=-1),
        init=init,
        change=_never,
        gradients=masked_gradients if mask_gradients else dense_gradients,
        packed=packed,
        starts_changed=True,
    )
    tx = wrap(inner, recipe)

    def init_checked(params: Tree) -> Any:
        weights = paths.flatten(params)
        if weights:  # optax.tree_map_params initialises on an empty tree
            check_masks(weights, fixed)
            _check_floating(weights, fixed)
        return tx.init(params)

    return optax.GradientTransformationExtraArgs(init_checked, tx.update)


def _check_floating(weights: Leaves, fixed: Leaves) -> None:
    for path in fixed:
        if not jnp.issubdtype(weights[path].dtype, jnp.floating):
            raise TypeError(
                f"masks has an entry for {path!r} of dtype {weights[path].dtype}: only "
                "floating-point parameters can be pruned. Leave it out of masks."
            )


def _never(moment: Moment) -> tuple[Leaves, Tree]:
    return moment.masks, moment.extra
