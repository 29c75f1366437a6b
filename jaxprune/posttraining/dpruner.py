"""D-Pruner: weights that matter to one domain, and weights that matter to all other text."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._core import paths
from jaxprune._core.prunable import Where
from jaxprune._core.stacks import over_layers
from jaxprune.graph import Graph
from jaxprune.graph.matrix import Layout
from jaxprune.masks import Patterns
from jaxprune.patterns import Unstructured
from jaxprune.posttraining._blocks import Blocks, Leaves, Place, places_of
from jaxprune.posttraining.matrix import Inputs
from jaxprune.posttraining.scored import Scored
from jaxprune.posttraining.select import Select, per_matrix
from jaxprune.posttraining.sequential import Result, prune_blocks
from jaxprune.scores.dual import dual_importance, obs
from jaxprune.types import Tree

Loss = Callable[[Tree, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class DPruner(Scored):
    """D-Pruner on one matrix; see :func:`dpruner`."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of ``Inputs`` that it reads."""
        return ("gradient",)

    def scores(self, weight: jax.Array, inputs: Inputs) -> jax.Array:
        """Return the dual importance, which was computed beforehand."""
        del weight
        assert inputs.gradient is not None
        return inputs.gradient.astype(jnp.float32)

    def _means(self) -> Mapping[str, str]:
        return {"gradient": "the dual importance, as dpruner_scores gives it"}


def dpruner(*, select: Select = per_matrix, keep_last: bool = True) -> DPruner:
    """Prune by dual importance: that of a domain, and that of all other text (D-Pruner).

    The importance comes from gradients and is computed for the whole dense model before any weight
    is pruned: `prune_blocks` takes it as ``gradients=``. `prune_dpruner` does all of it.

    Args:
      select: which weights compete: all of a matrix, or ``per_input_block``, the paper's iterative
        blocking of 128 inputs.
      keep_last: of equal scores, keep those of higher index.

    Returns:
      The method, ``(weight, inputs, target) -> pruned``. It reads ``inputs.gradient``, in which it
      expects `dpruner_scores`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> weight, scores = jnp.array([[3.0, -1.0], [2.0, 2.0]]), jnp.array([[0.0, 5.0], [4.0, 1.0]])
      >>> inputs = posttraining.Inputs(jnp.float32(1), jnp.float32(1), gradient=scores)
      >>> posttraining.dpruner()(weight, inputs, posttraining.Target(0.5)).weight
      Array([[ 0., -1.],
             [ 2.,  0.]], dtype=float32)

    Reference:
      Zhang et al., Pruning as a domain-specific LLM extractor (D-Pruner), arXiv:2405.06275.
    """
    return DPruner(select, keep_last)


def general_importance(
    graph: Graph,
    params: Tree,
    batches: Iterable[Any],
    *,
    damping: float = 0.01,
    mask: Callable[..., jax.Array] | None = None,
    where: Where | None = None,
) -> Tree:
    """Score weights by the error that their loss leaves in their layer, on open-domain text.

    ``W_ij² / U_ii²`` with ``H = 2/sequences · Σ x xᵀ``, damped, and ``H⁻¹ = UᵀU``: SparseGPT's
    score before any weight has changed, `jaxprune.scores.obs`, for every weight of the dense model.
    D-Pruner's general importance, which its authors derive from SparseGPT's code.

    Args:
      graph: of the model, `jaxprune.trace`.
      params: its parameters, dense.
      batches: inputs of the model, open-domain text, as in `prune_blocks`.
      damping: as in `jaxprune.scores.obs`.
      mask: as in `prune_blocks`.
      where: as in `prune_blocks`.

    Returns:
      Tree like ``params`` of scores in float32; ``optax.MaskedNode()`` where nothing is pruned.

    Raises:
      ValueError: as in `prune_blocks`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> from jaxprune import posttraining
      >>> def model(params, x):
      ...     for layer in params:
      ...         x = x + x @ layer["kernel"]
      ...     return x
      >>> params = [{"kernel": jnp.ones((2, 2))}, {"kernel": jnp.ones((2, 2))}]
      >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> graph = jaxprune.trace(model, params, x)
      >>> first, second = posttraining.general_importance(graph, params, [x], damping=0.0)
      >>> first["kernel"].tolist()  # the squares of the inputs
      [[9.0, 9.0], [1.0, 1.0]]

    Reference:
      Zhang et al., Pruning as a domain-specific LLM extractor (D-Pruner), arXiv:2405.06275.
    """
    model = Blocks(graph, params, batches, where=where, needs=("gram",), mask=mask)
    found: Leaves = {}
    for index, segment in enumerate(model.segments):
        if segment in model.prunable:
            for weight in model.weights(segment):
                scores = _obs(weight.array, weight.inputs, weight.layout, damping)
                _put(found, weight.place, scores, model.leaves[weight.place[0]])
        model.forward(index)
    return paths.refill(params, found)


def dpruner_scores(
    graph: Graph,
    params: Tree,
    domain: Iterable[Any],
    general: Iterable[Any],
    loss_fn: Loss,
    *,
    fisher: bool = False,
    penalty: float = 0.1,
    rate: float = 1e-4,
    exact: bool = False,
    damping: float = 0.01,
    mask: Callable[..., jax.Array] | None = None,
    where: Where | None = None,
) -> Tree:
    """Score weights by what a domain and all other text lose without them (D-Pruner).

    General importance on ``general``, then `jaxprune.scores.dual_importance` on ``domain`` with it.
    With the published ``penalty`` and ``rate`` the general part is 2e-9 · G · g² of the gradient,
    which rarely changes a mask: raise ``rate`` for it to count.

    Args:
      graph: of the model, `jaxprune.trace`.
      params: its parameters, dense.
      domain: batches of ``loss_fn``, text of the domain.
      general: inputs of the model, open-domain text; batches of ``loss_fn`` with ``fisher``.
      loss_fn: ``(params, batch) -> loss``, a scalar and the mean over the batch; pure, since it is
        compiled once.
      fisher: take ``|g w + (g w)² / 2|`` for general importance, from gradients, in place of
        `general_importance`.
      penalty: as in `dual_importance`.
      rate: as in `dual_importance`.
      exact: as in `dual_importance`.
      damping: as in `general_importance`.
      mask: as in `prune_blocks`, for ``general``.
      where: as in `prune_blocks`.

    Returns:
      Tree like ``params`` of scores; ``optax.MaskedNode()`` where nothing is pruned.

    Raises:
      ValueError: as in `prune_blocks` and `dual_importance`.
      TypeError: ``domain`` is itself one batch.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> from jaxprune import posttraining
      >>> def model(params, x):
      ...     for layer in params:
      ...         x = x + x @ layer["kernel"]
      ...     return x
      >>> params = [{"kernel": jnp.ones((2, 2))}, {"kernel": jnp.ones((2, 2))}]
      >>> law, prose = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 3.0]])
      >>> graph = jaxprune.trace(model, params, law)
      >>> def loss_fn(params, x):
      ...     return jnp.mean(model(params, x))
      >>> first, _ = posttraining.dpruner_scores(graph, params, [law], [prose], loss_fn)
      >>> bool((first["kernel"][0] > 0).all()), bool((first["kernel"][1] == 0).all())
      (True, True)

    Reference:
      Zhang et al., Pruning as a domain-specific LLM extractor (D-Pruner), arXiv:2405.06275.
    """
    chosen = {path for places in places_of(graph, params, where) for path, _ in places}

    def pruned(path: str, leaf: Any) -> bool:
        del leaf
        return path in chosen

    if fisher:
        weight = dual_importance(loss_fn, params, general, where=pruned)
    else:
        weight = general_importance(graph, params, general, damping=damping, mask=mask, where=where)
    return dual_importance(
        loss_fn, params, domain, general=weight, penalty=penalty, rate=rate, exact=exact,
        where=pruned,
    )  # fmt: skip


def prune_dpruner(
    graph: Graph,
    params: Tree,
    domain: Iterable[Any],
    general: Iterable[Any],
    loss_fn: Loss,
    *,
    sparsity: float | None = None,
    pattern: Patterns = Unstructured(),
    select: Select = per_matrix,
    fisher: bool = False,
    penalty: float = 0.1,
    rate: float = 1e-4,
    exact: bool = False,
    damping: float = 0.01,
    mask: Callable[..., jax.Array] | None = None,
    where: Where | None = None,
) -> Result:
    """Prune a model for one domain so that it does not forget the others (D-Pruner).

    `dpruner_scores`, and the lowest of each matrix go; the weights that stay do not change.

    Args:
      graph: of the model, `jaxprune.trace`.
      params: its parameters.
      domain: text of the domain: batches of ``loss_fn`` that are inputs of the model.
      general: open-domain text, as in `dpruner_scores`.
      loss_fn: ``(params, batch) -> loss``, as in `dpruner_scores`.
      sparsity: share of zeros of each weight; None for the pattern's own.
      pattern: as in `prune_blocks`.
      select: which weights compete, as in `dpruner`.
      fisher: as in `dpruner_scores`.
      penalty: as in `dpruner_scores`.
      rate: as in `dpruner_scores`.
      exact: as in `dpruner_scores`.
      damping: as in `dpruner_scores`.
      mask: as in `dpruner_scores`.
      where: as in `prune_blocks`.

    Returns:
      The pruned parameters, the masks, and what became of each block. Errors are those of the
      weights: no activations are seen.

    Raises:
      ValueError: as in `prune_blocks` and `dpruner_scores`.
      TypeError: ``domain`` is itself one batch.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> from jaxprune import posttraining
      >>> def model(params, x):
      ...     for layer in params:
      ...         x = x + x @ layer["kernel"]
      ...     return x
      >>> params = [{"kernel": jnp.ones((2, 2))}, {"kernel": jnp.ones((2, 2))}]
      >>> law, prose = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 3.0]])
      >>> def loss_fn(params, x):
      ...     return jnp.mean(model(params, x))
      >>> pruned = posttraining.prune_dpruner(
      ...     jaxprune.trace(model, params, law), params, [law], [prose], loss_fn, sparsity=0.5)
      >>> pruned.params[0]["kernel"].tolist()  # the domain's only input
      [[1.0, 1.0], [0.0, 0.0]]

    Reference:
      Zhang et al., Pruning as a domain-specific LLM extractor (D-Pruner), arXiv:2405.06275.
    """
    batches = list(domain) if not hasattr(domain, "shape") else domain  # one batch is refused below
    scores = dpruner_scores(
        graph, params, batches, general, loss_fn, fisher=fisher, penalty=penalty, rate=rate,
        exact=exact, damping=damping, mask=mask, where=where,
    )  # fmt: skip
    return prune_blocks(
        graph, params, batches, dpruner(select=select), sparsity=sparsity, pattern=pattern,
        where=where, gradients=scores,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(2, 3))
def _obs(array: jax.Array, inputs: Inputs, layout: Layout, damping: float) -> jax.Array:
    """Return the scores of a weight in its own shape."""

    def one(weight: jax.Array, gram: jax.Array, sequences: jax.Array) -> jax.Array:
        return obs(weight, 2.0 / sequences * gram, damping=damping)

    score = over_layers(one, len(layout.lead))
    assert inputs.gram is not None
    return layout.weight(score(layout.matrix(array), inputs.gram, inputs.sequences))


def _put(found: Leaves, place: Place, scores: jax.Array, like: jax.Array) -> None:
    """Put scores in their place, in a parameter's layer if it stacks them."""
    path, layer = place
    if layer is None:
        found[path] = scores
        return
    before = found.get(path)
    before = jnp.zeros(like.shape, scores.dtype) if before is None else before
    found[path] = before.at[layer].set(scores)
