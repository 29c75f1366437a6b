"""Scores of connections by the flow through them: of gradients (GraSP), of synapses (SynFlow)."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune._core import paths
from jaxprune._core.prunable import Where, default_where, select
from jaxprune.scores import _derivatives
from jaxprune.scores.sensitivity import normalised_products
from jaxprune.types import Tree

_CHECK_LOSS = "Check the loss and the batches for overflow and for divisions by zero."
_DEEP = "Products of many layers leave the range of float32: pass x64=True."


def grasp(
    loss_fn: Callable[[Tree, Any, float], jax.Array],
    params: Tree,
    batches: Iterable[Any],
    *,
    temperature: float = 200.0,
    masks: Tree = None,
    where: Where = default_where,
) -> Tree:
    """Score weights by how much the flow of gradients needs them (GraSP).

    ``score = θ ⊙ (H g)`` with ``g = Σ_b ∇L_b`` and ``H = Σ_b ∇²L_b``, at ``θ ⊙ m``. The paper
    writes ``S = -θ ⊙ H g`` and *removes* the largest; here, as everywhere, higher = kept. The sign
    counts: a weight with a negative score is one whose removal increases the norm of the gradient.

    Args:
      loss_fn: ``(params, batch, temperature) -> loss``, a scalar: the cross-entropy of
        ``logits / temperature``. Pure, since it is compiled once.
      params: tree of arrays, at their initial values.
      batches: iterable of batches; the paper takes 10 examples of each class, in two halves.
      temperature: what the logits are divided by; the third argument of ``loss_fn``.
      masks: masks of the weights that are pruned already, by path, True = kept; None for none.
      where: which weights are scored, as in `make_masks`. Others take no part in ``H``.

    Returns:
      Tree like ``params`` of signed scores in float32 (float64 for such weights);
      ``optax.MaskedNode()`` where not prunable. Higher = kept.

    Raises:
      ValueError: no batch, a loss that is not a scalar, a temperature not above 0, products that
        are not finite or all zero (outside ``jit``), masks of other shapes, or nothing selected.
      TypeError: ``batches`` is itself one batch, or ``loss_fn`` does not take three arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import scores
      >>> def loss_fn(params, x, temperature):
      ...     return jnp.sum((x @ params["kernel"] / temperature) ** 2)
      >>> params = {"kernel": jnp.array([[1.0], [-2.0]])}
      >>> found = scores.grasp(loss_fn, params, [jnp.eye(2)], temperature=1.0)
      >>> found["kernel"].ravel().tolist()  # 2 · 2 · θ²
      [4.0, 16.0]

    Reference:
      Wang et al., Picking winning tickets before training by preserving gradient flow,
      arXiv:2002.07376, equation 8 and algorithm 2.
    """
    if not temperature > 0.0:
        raise ValueError(
            f"temperature must be above 0, got {temperature}. The logits are divided by it; the "
            "published value is 200."
        )
    batches = list(_derivatives.checked_batches("grasp", batches))  # they are read twice
    _check_three_arguments(loss_fn)
    weights, kept = _derivatives.weights_and_masks(params, masks, where)
    point = _derivatives.masked(weights, kept)
    heat = float(temperature)  # without a dtype of its own, so that the logits keep theirs

    def slope(batch: Any) -> _derivatives.Leaves:
        return _derivatives.gradient("grasp", loss_fn, point, params, (batch, heat))

    # Pruned weights do not move: the gradient has no part along them.
    direction = _derivatives.masked(_derivatives.summed("grasp", slope, batches), kept)

    def bend(batch: Any) -> _derivatives.Leaves:
        args = (batch, heat)
        return _derivatives.curvature("grasp", loss_fn, point, direction, params, args)

    bends = _derivatives.summed("grasp", bend, batches)
    _derivatives.refuse_useless("grasp", "Hessian-gradient products", bends, _CHECK_LOSS)
    return _derivatives.filled(params, {p: weights[p] * bends[p] for p in weights})


def _check_three_arguments(loss_fn: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(loss_fn)
    except (TypeError, ValueError):  # a builtin has none; the call itself will tell
        return
    try:
        signature.bind(None, None, None)
    except TypeError as error:
        raise TypeError(
            f"scores.grasp calls loss_fn(params, batch, temperature), but it takes {signature}. "
            "Divide the logits by the third argument; the temperature changes the scores."
        ) from error


def synflow(
    apply_fn: Callable[[Tree, Any], Any],
    params: Tree,
    example: Any,
    *,
    masks: Tree = None,
    where: Where = default_where,
    x64: bool = False,
) -> Tree:
    """Score weights by the total strength of the paths through them (SynFlow), without data.

    ``score = |θ| ⊙ ∂R/∂|θ|`` with ``R = Σ f(|θ| ⊙ m, 1)``, divided by the sum over all weights.
    All parameters are taken by their absolute value, biases and scales included, and the input is
    all ones. In a network of ReLUs without biases every layer has the same total, so that no layer
    is cut as a whole before the others. It wants many rounds: see `initial.iterate`.

    Args:
      apply_fn: ``(params, inputs) -> outputs``, any pytree of arrays; pure, since it is compiled
        once. Batch normalisation has to use its running statistics, as in evaluation.
      params: tree of arrays, at their initial values.
      example: inputs whose shapes and dtypes the ones have, arrays or ``jax.ShapeDtypeStruct``; a
        batch of one will do.
      masks: masks of the weights that are pruned already, by path, True = kept; None for none.
      where: which weights are scored, as in `make_masks`.
      x64: compute in float64, which deep networks need: R is a product over the layers. Not
        inside ``jit``.

    Returns:
      Tree like ``params`` of scores in float32 (float64 for such weights); ``optax.MaskedNode()``
      where not prunable. Higher = kept.

    Raises:
      ValueError: scores that are not finite or all zero (outside ``jit``), ``x64=True`` inside
        ``jit``, masks of other shapes, or nothing selected.
      TypeError: an input that is not floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import scores
      >>> params = {"one": jnp.array([[1.0, -3.0]]), "two": jnp.array([[2.0], [1.0]])}
      >>> def apply_fn(params, x):
      ...     return x @ params["one"] @ params["two"]
      >>> found = scores.synflow(apply_fn, params, jnp.zeros((1, 1)))
      >>> [[round(x, 4) for x in leaf.ravel().tolist()] for leaf in found.values()]
      [[0.2, 0.3], [0.2, 0.3]]

    Reference:
      Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic
      flow, arXiv:2006.05467, equation 2 and algorithm 1.
    """
    if not x64:
        return _synflow(apply_fn, params, example, masks, where)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(params)):
        raise ValueError(
            "x64=True cannot be used inside jit. Call scores.synflow outside of it; what is slow "
            "is compiled anyway."
        )
    double = {path: leaf.dtype == jnp.float64 for path, leaf in select(params, where).items()}
    with jax.enable_x64(True):
        doubled = jax.tree.map(_as_double, params)
        found = _synflow(apply_fn, doubled, example, masks, where, jnp.float64)
        leaves = paths.flatten(found)
        return _derivatives.filled(
            params,
            {
                p: leaves[p].astype(jnp.float64 if wide else jnp.float32)
                for p, wide in double.items()
            },
        )


def _as_double(leaf: Any) -> Any:
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _absolute(leaf: Any) -> Any:
    return jnp.abs(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _synflow(
    apply_fn: Callable[[Tree, Any], Any],
    params: Tree,
    example: Any,
    masks: Tree,
    where: Where,
    dtype: Any = None,
) -> Tree:
    positive = jax.tree.map(_absolute, params)
    weights, kept = _derivatives.weights_and_masks(positive, masks, where)
    point = _derivatives.masked(weights, kept)
    ones = jax.tree.map(lambda x: _ones(x, dtype), example)
    flow = _Total(apply_fn)
    slopes = _derivatives.gradient("synflow", flow, point, positive, (ones,))
    _derivatives.refuse_useless("synflow", "derivatives", slopes, _DEEP)
    return _derivatives.filled(params, normalised_products(weights, slopes))


def _ones(like: Any, dtype: Any) -> jax.Array:
    if not jnp.issubdtype(like.dtype, jnp.floating):
        raise TypeError(
            f"scores.synflow: example has an input of dtype {like.dtype} and shape {like.shape}. "
            "The input of ones has to be floating-point; for tokens, let apply_fn start at the "
            "embedded ones."
        )
    return jnp.ones(like.shape, dtype or like.dtype)


@dataclasses.dataclass(frozen=True)
class _Total:
    """The sum of all outputs; equal for equal functions, so that the program is found again."""

    apply_fn: Callable[[Tree, Any], Any]

    def __call__(self, params: Tree, inputs: Any) -> jax.Array:
        outputs = jax.tree.leaves(self.apply_fn(params, inputs))
        return functools.reduce(jnp.add, [jnp.sum(_derivatives.wide(leaf)) for leaf in outputs])
