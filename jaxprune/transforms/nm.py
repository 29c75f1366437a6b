"""N:M training through a mask recomputed in every step: STE and SR-STE (arXiv:2102.04010)."""

import math
from collections.abc import Mapping

import jax
import optax

from jaxprune._core.prunable import Where, default_where
from jaxprune.masks import MaskRule, Patterns
from jaxprune.transforms._straight import Straight, final_mask, train_straight_through


def ste(
    inner: optax.GradientTransformation,
    pattern: Patterns,
    *,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Train N:M sparse weights with the straight-through estimator.

    The loss sees ``B ⊙ W``, where ``B`` keeps the n largest ``|W|`` of every group and is
    recomputed from the present weights in every step; its gradient moves all of ``W``, pruned
    weights included, which may come back. Parameters are stored dense: take the loss at
    `jaxprune.forward_params` (or use `jaxprune.value_and_grad`), and export with
    `jaxprune.final_params`.

    Args:
      inner: the optimizer to wrap.
      pattern: ``NM(n, m)``, or ``{regex: NM(n, m)}`` for another N:M by layer.
      where: which parameters are prunable; as in `jaxprune.make_masks`.
      layers: as in `jaxprune.make_masks`.
      packed: store the masks of the last step as one bit a weight, instead of one byte.

    Returns:
      An optax transform.

    Raises:
      ValueError: a pattern that does not fit a parameter or has no sparsity of its own.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> params = {"kernel": jnp.array([[4.0], [3.0], [2.0], [1.0]])}
      >>> tx = jaxprune.ste(optax.sgd(1.0), jaxprune.NM(2, 4))
      >>> opt_state = tx.init(params)
      >>> jaxprune.forward_params(params, opt_state)["kernel"].ravel().tolist()
      [4.0, 3.0, 0.0, 0.0]
      >>> loss = lambda p: -p["kernel"].sum() + p["kernel"][3, 0]
      >>> value, grads = jaxprune.value_and_grad(loss)(params, opt_state)
      >>> float(value), grads["kernel"].ravel().tolist()
      (-7.0, [-1.0, -1.0, -1.0, 0.0])

    Reference:
      Zhou et al., Learning N:M fine-grained structured sparse neural networks, arXiv:2102.04010.
    """
    return _sparse_refined("ste", inner, pattern, 0.0, where, layers, packed)


def sr_ste(
    inner: optax.GradientTransformation,
    pattern: Patterns,
    *,
    decay: float = 2e-4,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Train N:M sparse weights with the sparse-refined straight-through estimator.

    As `jaxprune.ste`, and the inner optimizer sees ``g + decay · (1 − B) ⊙ W``: pruned weights are
    pulled to zero, which calms the masks.

    Args:
      inner: the optimizer to wrap; its own weight decay is additional.
      pattern: as in `jaxprune.ste`.
      decay: strength of the pull, 0 or more; 0 is `jaxprune.ste`. It enters through the gradient:
        plain SGD shrinks a pruned weight by ``learning rate · decay`` a step, Adam normalises it.
      where: as in `jaxprune.make_masks`.
      layers: as in `jaxprune.make_masks`.
      packed: as in `jaxprune.ste`.

    Returns:
      An optax transform.

    Raises:
      ValueError: as in `jaxprune.ste`, or a decay that is negative or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> params = {"kernel": jnp.array([[4.0], [3.0], [2.0], [1.0]])}
      >>> tx = jaxprune.sr_ste(optax.sgd(1.0), jaxprune.NM(2, 4), decay=0.5)
      >>> grads = {"kernel": jnp.zeros((4, 1))}
      >>> updates, opt_state = tx.update(grads, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["kernel"].ravel().tolist()
      [4.0, 3.0, 1.0, 0.5]

    Reference:
      Zhou et al., Learning N:M fine-grained structured sparse neural networks, arXiv:2102.04010.
    """
    if not (math.isfinite(decay) and decay >= 0.0):
        raise ValueError(
            f"decay must be a finite number of 0 or more, got {decay}. It pulls pruned weights to "
            "zero through their gradients; the paper uses 2e-4."
        )
    return _sparse_refined("sr_ste", inner, pattern, float(decay), where, layers, packed)


def _sparse_refined(
    name: str,
    inner: optax.GradientTransformation,
    pattern: Patterns,
    decay: float,
    where: Where,
    layers: Mapping[str, int] | None,
    packed: bool,
) -> optax.GradientTransformationExtraArgs:
    rule = MaskRule(pattern, layers=dict(layers or {}))

    def present(path: str, weight: jax.Array, step: jax.Array) -> jax.Array:
        del step
        return final_mask(rule, path, weight)

    method = Straight(
        name=name,
        text=f"{name}|{rule.describe()}|{decay}",
        rule=rule,
        where=where,
        present=present,
        decay=decay,
        packed=packed,
    )
    return train_straight_through(inner, method)
