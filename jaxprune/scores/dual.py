"""Scores of a model that is pruned for one domain and should not forget the others."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg as linalg
from jax import lax

from jaxprune._core import paths
from jaxprune._core.prunable import Where, default_where
from jaxprune.scores import _derivatives
from jaxprune.types import Tree

_REMEDY = "Check the loss, the batches and general for overflow and for divisions by zero."


def dual_importance(
    loss_fn: Callable[[Tree, Any], jax.Array],
    params: Tree,
    batches: Iterable[Any],
    *,
    general: Tree = None,
    penalty: float = 0.1,
    rate: float = 1e-4,
    exact: bool = False,
    where: Where = default_where,
) -> Tree:
    """Score weights by what a domain loses without them, and all other text (D-Pruner).

    ``score = mean_b |ĝ_b w + (ĝ_b w)² / 2|``: the change of the loss when the weight goes, to
    second order, with the Hessian's diagonal taken as ĝ². Without ``general`` ĝ is the gradient g;
    that is the Fisher form of general importance if the batches are of open-domain text. With it ĝ
    is the gradient of ``L + penalty · rate² · Σ G g²``, the cost of moving weights that matter in
    general: ``ĝ = g + 2 · penalty · rate² · H(G ⊙ g)``, where H(·) is a Hessian-vector product, or
    ``g² ⊙ ·`` for its diagonal.

    The authors' code puts g² in place of the whole product H g, divides the second terms by 1000,
    and adds w³ to the score; it is the paper that is followed here.

    Args:
      loss_fn: ``(params, batch) -> loss``, a scalar and the mean over the batch; pure, since it is
        compiled once.
      params: tree of arrays: the dense model.
      batches: iterable of batches of the domain's text, each a pytree of arrays.
      general: tree like ``params`` of the weights' general importance, such as the result of this
        function on open-domain text, or `obs` of each matrix.
      penalty: weight of the second term, 0.001 to 0.1 in the paper.
      rate: learning rate of the step for which the term stands.
      exact: multiply by the Hessian, at three times the cost, and not by its diagonal.
      where: which weights are scored, as in `make_masks`.

    Returns:
      Tree like ``params`` of scores in float32 (float64 for such weights); ``optax.MaskedNode()``
      where not prunable. Higher = kept. The paper compares them within a matrix, or within blocks
      of 128 inputs: ``posttraining.prune_by`` with ``per_matrix`` or ``per_input_block``.

    Raises:
      ValueError: no batch, a loss that is not a scalar, scores that are not finite or all zero
        (outside ``jit``), ``general`` without a leaf or of another shape, or nothing selected.
      TypeError: ``batches`` is itself one batch.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import scores
      >>> def loss_fn(params, x):
      ...     return jnp.mean(x @ params["kernel"])
      >>> params = {"kernel": jnp.array([[1.0], [2.0], [0.0]])}
      >>> x = jnp.array([[2.0, 0.5, 9.0]])
      >>> scores.dual_importance(loss_fn, params, [x])["kernel"].ravel().tolist()
      [4.0, 1.5, 0.0]
      >>> general = {"kernel": jnp.array([[0.0], [4.0], [0.0]])}
      >>> dual = scores.dual_importance(loss_fn, params, [x], general=general, rate=1.0)
      >>> [round(score, 3) for score in dual["kernel"].ravel().tolist()]
      [4.0, 1.92, 0.0]

    Reference:
      Zhang et al., Pruning as a domain-specific LLM extractor (D-Pruner), arXiv:2405.06275.
    """
    batches = _derivatives.checked_batches("dual_importance", batches)
    weights, _ = _derivatives.weights_and_masks(params, None, where)
    kept = None if general is None else _checked_general(general, weights)
    count = 0

    def importance(batch: Any) -> _derivatives.Leaves:
        nonlocal count
        count += 1
        args = (batch,)
        grads = _derivatives.gradient("dual_importance", loss_fn, weights, params, args)
        if kept is not None:
            pull = {path: 2.0 * penalty * rate**2 * kept[path] * grads[path] for path in grads}
            if exact:
                bend = _derivatives.curvature(
                    "dual_importance", loss_fn, weights, pull, params, args
                )
            else:
                bend = {path: grads[path] ** 2 * pull[path] for path in grads}
            grads = jax.tree.map(jnp.add, grads, bend)
        return _removal(weights, grads)

    total = _derivatives.summed("dual_importance", importance, batches)
    _derivatives.refuse_useless("dual_importance", "scores", total, _REMEDY)
    return _derivatives.filled(params, {path: leaf / count for path, leaf in total.items()})


@jax.jit
def _removal(weights: _derivatives.Leaves, grads: _derivatives.Leaves) -> _derivatives.Leaves:
    first = jax.tree.map(jnp.multiply, weights, grads)
    return {path: jnp.abs(leaf + leaf * leaf / 2) for path, leaf in first.items()}


def _checked_general(general: Tree, weights: _derivatives.Leaves) -> _derivatives.Leaves:
    found = paths.flatten(general)
    for path, weight in weights.items():
        shape = getattr(found.get(path), "shape", None)
        if shape != weight.shape:
            held = "nothing" if shape is None else f"shape {shape}"
            raise ValueError(
                f"general has {held} at {path!r}, whose weight has shape {weight.shape}. Pass a "
                "score of every prunable weight, or restrict where=."
            )
    return {path: found[path].astype(leaf.dtype) for path, leaf in weights.items()}


def obs(weight: jax.Array, gram: jax.Array, *, damping: float = 0.01) -> jax.Array:
    """Score a weight by the error of its output once the weights after it have made up for it.

    ``score_ij = W_ij² / U_ii²``, with U the upper Cholesky factor of the inverse of ``gram`` plus
    ``damping · mean(diag)`` on its diagonal: SparseGPT's score before any weight has changed, and
    D-Pruner's general importance. An input that is always 0 has score 0.

    Args:
      weight: (in, out).
      gram: (in, in), ``Σ x xᵀ`` of the inputs times any factor; scores have the same factor.
      damping: share of the diagonal's mean that is added to it.

    Returns:
      Scores (in, out) in float32. Higher = kept.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import scores
      >>> gram = jnp.array([[4.0, 0.0], [0.0, 1.0]])
      >>> scores.obs(jnp.array([[1.0], [3.0]]), gram, damping=0.0)
      Array([[4.],
             [9.]], dtype=float32)

    Reference:
      Frantar and Alistarh, SparseGPT, arXiv:2301.00774; Zhang et al., Pruning as a domain-specific
      LLM extractor (D-Pruner), arXiv:2405.06275.
    """
    gram, weight = gram.astype(jnp.float32), weight.astype(jnp.float32)
    diagonal = jnp.diagonal(gram)
    dead = diagonal == 0
    filled = jnp.where(dead, 1.0, 0.0) + damping * jnp.mean(jnp.where(dead, 1.0, diagonal))
    with jax.default_matmul_precision("highest"):
        lower = linalg.cholesky(gram + jnp.diag(filled), lower=True)
        half = lax.linalg.triangular_solve(
            lower, jnp.eye(len(gram), dtype=jnp.float32), left_side=True, lower=True
        )
        inverse = jnp.matmul(half.T, half)
        upper = linalg.cholesky(inverse, lower=False)
    pivots = jnp.where(dead, jnp.inf, jnp.diagonal(upper))
    return (weight / pivots[:, None]) ** 2
