"""Scores of connections by their effect on the loss, from data and before training."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._core.prunable import Where, default_where
from jaxprune.scores import _derivatives
from jaxprune.types import Tree

_REMEDY = "Check the loss and the batches for overflow and for divisions by zero."


def snip(
    loss_fn: Callable[[Tree, Any], jax.Array],
    params: Tree,
    batches: Iterable[Any],
    *,
    masks: Tree = None,
    where: Where = default_where,
) -> Tree:
    """Score weights by how much the loss depends on their connection (SNIP).

    ``score = |θ ⊙ Σ_b ∇L_b(θ ⊙ m)| / Σ |θ ⊙ Σ_b ∇L_b(θ ⊙ m)|``: the gradients are summed before
    the absolute value is taken, and the scores of all layers sum to 1. At ``m = 1`` it is the
    published score; with ``masks`` pruned weights are scored by what they would do if they came
    back, which is FORCE's.

    Args:
      loss_fn: ``(params, batch) -> loss``, a scalar and the mean over the batch; pure, since it is
        compiled once.
      params: tree of arrays, at their initial values.
      batches: iterable of batches, each a pytree of arrays.
      masks: masks of the weights that are pruned already, by path, True = kept; None for none.
      where: which weights are scored, as in `make_masks`.

    Returns:
      Tree like ``params`` of scores in float32 (float64 for such weights); ``optax.MaskedNode()``
      where not prunable. Higher = kept.

    Raises:
      ValueError: no batch, a loss that is not a scalar, gradients that are not finite or all zero
        (outside ``jit``), masks of other shapes, or nothing selected.
      TypeError: ``batches`` is itself one batch.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import scores
      >>> def loss_fn(params, x):
      ...     return jnp.mean(x @ params["kernel"])
      >>> params = {"kernel": jnp.array([[1.0], [-2.0], [5.0]])}
      >>> batches = [jnp.array([[1.0, 1.0, 0.0]]), jnp.array([[1.0, 2.0, 0.0]])]
      >>> scores.snip(loss_fn, params, batches)["kernel"].ravel().tolist()
      [0.25, 0.75, 0.0]

    Reference:
      Lee et al., SNIP: single-shot network pruning, arXiv:1810.02340, equation 6; de Jorge et al.,
      Progressive skeletonization (FORCE), arXiv:2006.09081.
    """
    batches = _derivatives.checked_batches("snip", batches)
    weights, kept = _derivatives.weights_and_masks(params, masks, where)
    point = _derivatives.masked(weights, kept)

    def slope(batch: Any) -> _derivatives.Leaves:
        return _derivatives.gradient("snip", loss_fn, point, params, (batch,))

    grads = _derivatives.summed("snip", slope, batches)
    _derivatives.refuse_useless("snip", "gradients", grads, _REMEDY)
    return _derivatives.filled(params, normalised_products(weights, grads))


@jax.jit
def normalised_products(
    weights: _derivatives.Leaves, grads: _derivatives.Leaves
) -> _derivatives.Leaves:
    """Return ``|w · g|``, divided by the sum over all leaves."""
    products = {path: jnp.abs(weights[path] * grads[path]) for path in weights}
    # The largest comes first to 1, so that neither the sum nor the quotient leaves the range.
    most = jnp.stack([jnp.max(leaf) for leaf in products.values()]).max()
    products = {path: leaf / jnp.where(most > 0, most, 1) for path, leaf in products.items()}
    total = sum(jnp.sum(leaf) for leaf in products.values())
    return {path: leaf / jnp.where(total > 0, total, 1) for path, leaf in products.items()}
