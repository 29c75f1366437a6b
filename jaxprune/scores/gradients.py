"""Scores that read the weights and their gradients."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.scores import _leaves
from jaxprune.types import Tree


def taylor(params: Tree, grads: Tree) -> Tree:
    """Score a weight by the change of the loss, to first order, when it is set to zero.

    ``score = |w · ∂L/∂w|``, in float32 at least.

    Args:
      params: tree of weights; ``None`` and ``optax.MaskedNode()`` pass through.
      grads: tree of the loss's gradients with the structure of ``params``.

    Returns:
      The tree of scores with the structure and shapes of ``params``: float32, or float64 where a
      weight or its gradient is.

    Raises:
      ValueError: ``grads`` is None, or has no gradient for a weight.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import scores
      >>> params = {"kernel": jnp.array([1.0, -2.0, 3.0])}
      >>> grads = {"kernel": jnp.array([0.5, 0.25, 0.0])}
      >>> scores.taylor(params, grads)["kernel"]
      Array([0.5, 0.5, 0. ], dtype=float32)

    Reference:
      Molchanov et al., Pruning convolutional neural networks, arXiv:1611.06440, equation 7.
    """
    if grads is None:
        raise ValueError(
            "scores.taylor needs gradients, got grads=None. Compute them with "
            "jax.grad(loss)(params, ...) and pass scores.taylor(params, grads), or use a transform "
            "such as jaxprune.gradual, which hands the gradients of the step to its score."
        )
    return _leaves.map_with_path(_first_order, params, grads)


def _first_order(path: str, weight: Any, grad: Any) -> jax.Array:
    if _leaves.is_absent(grad):
        raise ValueError(
            f"scores.taylor needs a gradient for {path!r}, got none. Differentiate with respect "
            "to this parameter, or exclude it with where=."
        )
    wide = jnp.float64 if jnp.float64 in (weight.dtype, grad.dtype) else jnp.float32
    return jnp.abs(weight.astype(wide) * grad.astype(wide))
