"""How large the loss's gradient is over many sequences."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._core.prunable import Where, default_where
from jaxprune.scores import _derivatives
from jaxprune.types import Tree


def gradient_norm(
    loss_fn: Callable[[Tree, Any], jax.Array],
    params: Tree,
    batches: Iterable[Any],
    *,
    order: int = 2,
    scale: float = 100.0,
    where: Where = default_where,
) -> Tree:
    """Return the norm of each weight's gradients over the batches (GBLM-Pruner).

    ``Σ_b |scale · g_b|`` of order 1, ``√(Σ_b (scale · g_b)²)`` of order 2: a sum, not a mean. Each
    batch is one term; the published code gives every sequence its own. It accumulates order 1 in
    float16, where small terms are lost and the sum saturates at 65504; here it is float32.

    Args:
      loss_fn: ``(params, batch) -> loss``, a scalar and the mean over the batch; pure, since it is
        compiled once.
      params: tree of arrays: the dense model.
      batches: iterable of batches, each a pytree of arrays.
      order: 1 or 2.
      scale: factor of the gradients, which weighs them against the inputs.
      where: which weights are scored, as in `make_masks`.

    Returns:
      Tree like ``params`` of norms in float32 (float64 for such weights); ``optax.MaskedNode()``
      where not prunable.

    Raises:
      ValueError: another order, no batch, a loss that is not a scalar, gradients that are not
        finite or all zero (outside ``jit``), or nothing selected.
      TypeError: ``batches`` is itself one batch.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import scores
      >>> def loss_fn(params, x):
      ...     return jnp.sum(x @ params["kernel"])
      >>> params = {"kernel": jnp.array([[1.0], [-2.0]])}
      >>> batches = [jnp.array([[3.0, 1.0]]), jnp.array([[-4.0, 1.0]])]
      >>> scores.gradient_norm(loss_fn, params, batches, scale=1.0)["kernel"][0].tolist()
      [5.0]
      >>> scores.gradient_norm(loss_fn, params, batches, order=1, scale=1.0)["kernel"][0].tolist()
      [7.0]

    Reference:
      Das et al., Beyond size: how gradients shape pruning decisions in large language models,
      arXiv:2311.04902.
    """
    if order not in (1, 2):
        raise ValueError(
            f"order must be 1 or 2, got {order!r}. It is the norm over the batches: 1 sums the "
            "absolute values, 2 takes the root of the sum of squares."
        )
    batches = _derivatives.checked_batches("gradient_norm", batches)
    weights, _ = _derivatives.weights_and_masks(params, None, where)

    def powers(batch: Any) -> _derivatives.Leaves:
        grads = _derivatives.gradient("gradient_norm", loss_fn, weights, params, (batch,))
        return {path: jnp.abs(scale * leaf) ** order for path, leaf in grads.items()}

    total = _derivatives.summed("gradient_norm", powers, batches)
    remedy = "Check the loss and the batches for overflow and for divisions by zero."
    _derivatives.refuse_useless("gradient_norm", "gradients", total, remedy)
    if order == 2:
        total = {path: jnp.sqrt(leaf) for path, leaf in total.items()}
    return _derivatives.filled(params, total)
