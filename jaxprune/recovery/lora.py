"""Low-rank adapters that keep a mask: MaskLoRA, ScaleLoRA and LoRA-Prune (PERP)."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._core import paths
from jaxprune._core.prunable import Where, select
from jaxprune.graph import Graph
from jaxprune.graph.matrix import Layout
from jaxprune.masks import check_masks, mask_leaves
from jaxprune.recovery.adapters import added, keep, layout
from jaxprune.types import Tree

_STATIC: dict[str, Any] = {"static": True}


@dataclasses.dataclass(frozen=True)
class _LowRank:
    """Two factors of a weight written as matrices (in, out)."""

    a: jax.Array  # (*lead, in, rank) float32
    b: jax.Array  # (*lead, rank, out) float32
    scale: float = dataclasses.field(metadata=_STATIC)
    layout: Layout = dataclasses.field(metadata=_STATIC, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.layout.shape

    @property
    def needs_mask(self) -> bool:
        """Whether it would bring pruned weights back without the weight's mask."""
        return False

    def product(self) -> jax.Array:
        """Return ``scale · a b`` in the weight's own shape, float32."""
        # In full float32, which accelerators do not by themselves: the rank is small.
        product = jnp.matmul(self.a, self.b, precision=lax.Precision.HIGHEST)
        return self.layout.weight(self.scale * product)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskLoRA(_LowRank):
    """A masked low-rank change of one weight; see :func:`mask_lora`.

    Attributes:
      a: ``(*lead, in, rank)`` float32.
      b: ``(*lead, rank, out)`` float32.
      scale: what the product is multiplied with, alpha / rank.
      layout: how the weight makes up matrices (in, out).
    """

    @property
    def needs_mask(self) -> bool:
        """Whether it would bring pruned weights back without the weight's mask."""
        return True

    def effective(self, weight: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return ``where(mask, W + scale · a b, 0)``."""
        return keep(mask, added(weight, self.product()))

    def merged(self, weight: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return what `effective` does."""
        return self.effective(weight, mask)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaleLoRA(_LowRank):
    """A low-rank factor of one weight; see :func:`scale_lora`.

    Attributes:
      a: ``(*lead, in, rank)`` float32.
      b: ``(*lead, rank, out)`` float32.
      scale: what the product is multiplied with, 1.
      layout: how the weight makes up matrices (in, out).
    """

    def effective(self, weight: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return ``where(mask, W · (a b), 0)``."""
        product = self.product()
        return keep(mask, (weight.astype(product.dtype) * product).astype(weight.dtype))

    def merged(self, weight: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return what `effective` does."""
        return self.effective(weight, mask)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoRA(_LowRank):
    """A dense low-rank change of one weight; see :func:`lora_prune` and :func:`lora`.

    Attributes:
      a: ``(*lead, in, rank)`` float32.
      b: ``(*lead, rank, out)`` float32.
      scale: what the product is multiplied with, alpha / rank.
      layout: how the weight makes up matrices (in, out).
    """

    def effective(self, weight: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return ``W + scale · a b``, dense."""
        del mask
        return added(weight, self.product())

    def merged(self, weight: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return ``where(mask, W + scale · a b, 0)``."""
        return keep(mask, added(weight, self.product()))


def mask_lora(
    params: Tree,
    masks: Tree,
    *,
    key: jax.Array,
    rank: int = 16,
    alpha: float = 32.0,
    where: Where | None = None,
    graph: Graph | None = None,
) -> dict[str, MaskLoRA]:
    """Make adapters whose change has the weight's mask, while training and merged (MaskLoRA).

    The forward pass sees ``W + alpha/rank · (a b ⊙ mask)``. At first b is 0, so that nothing
    changes. A kept weight that happens to be 0 is trained, too; the published code, which takes
    ``W != 0`` for the mask, leaves it.

    Args:
      params: parameters in any container.
      masks: masks in any container, True = kept.
      key: from `jax.random.key`.
      rank: columns of a, rows of b.
      alpha: the change is multiplied with alpha / rank.
      where: which of the masked weights, as in `jaxprune.make_masks`; None for all.
      graph: of the model, `jaxprune.trace`: needed for weights that are no matrices, such as
        attention's ``[d, heads, head_dim]`` or stacked layers.

    Returns:
      ``{path: MaskLoRA}`` for `effective_params` and `merge`; float32 whatever the parameters are.

    Raises:
      ValueError: no mask, a weight that is no matrix without a graph, a rank below 1, or an alpha
        that is not positive.
      TypeError: a rank that is no integer.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune import recovery
      >>> params = {"kernel": jnp.array([[2.0, 0.0], [0.0, 3.0]])}
      >>> masks = {"kernel": jnp.eye(2, dtype=bool)}
      >>> adapters = recovery.mask_lora(params, masks, rank=1, key=jax.random.key(0))
      >>> trained = jax.tree.map(jnp.ones_like, adapters)
      >>> recovery.merge(params, masks, trained)["kernel"].tolist()
      [[34.0, 0.0], [0.0, 35.0]]

    Reference:
      Zimmer et al., PERP: Rethinking the prune-retrain paradigm in the era of LLMs,
      arXiv:2312.15230.
    """
    made = _initial(key, rank, alpha, graph)
    return {path: MaskLoRA(*made(path, w)) for path, w in _masked(params, masks, where).items()}


def lora_prune(
    params: Tree,
    masks: Tree,
    *,
    key: jax.Array,
    rank: int = 16,
    alpha: float = 32.0,
    where: Where | None = None,
    graph: Graph | None = None,
) -> dict[str, LoRA]:
    """Make adapters that train a dense change, which the mask cuts when it is merged (LoRA-Prune).

    Training is that of LoRA. Merging loses the part of the change that falls on pruned weights, so
    that the merged model is another function than the trained one; `mask_lora` is not.

    Args:
      params: parameters in any container.
      masks: masks in any container, True = kept.
      key: from `jax.random.key`.
      rank: as in `mask_lora`.
      alpha: as in `mask_lora`.
      where: as in `mask_lora`.
      graph: as in `mask_lora`.

    Returns:
      ``{path: LoRA}``.

    Raises:
      ValueError: as in `mask_lora`.
      TypeError: as in `mask_lora`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune import recovery
      >>> params = {"kernel": jnp.array([[2.0, 0.0], [0.0, 3.0]])}
      >>> masks = {"kernel": jnp.eye(2, dtype=bool)}
      >>> adapters = recovery.lora_prune(params, masks, rank=1, alpha=1.0, key=jax.random.key(0))
      >>> trained = jax.tree.map(jnp.ones_like, adapters)
      >>> recovery.effective_params(params, masks, trained)["kernel"].tolist()
      [[3.0, 1.0], [1.0, 4.0]]
      >>> recovery.merge(params, masks, trained)["kernel"].tolist()
      [[3.0, 0.0], [0.0, 4.0]]

    Reference:
      Zimmer et al., PERP: Rethinking the prune-retrain paradigm in the era of LLMs,
      arXiv:2312.15230.
    """
    made = _initial(key, rank, alpha, graph)
    return {path: LoRA(*made(path, w)) for path, w in _masked(params, masks, where).items()}


def scale_lora(
    params: Tree,
    masks: Tree,
    *,
    rank: int = 16,
    where: Where | None = None,
    graph: Graph | None = None,
) -> dict[str, ScaleLoRA]:
    """Make adapters that multiply the weight, so that zeros stay zero (ScaleLoRA).

    The forward pass sees ``W ⊙ (a b)``. All of a and b starts at ``1/√rank``, so that the product
    is 1 up to rounding. There is no alpha.

    Args:
      params: parameters in any container.
      masks: masks in any container, True = kept.
      rank: as in `mask_lora`.
      where: as in `mask_lora`.
      graph: as in `mask_lora`.

    Returns:
      ``{path: ScaleLoRA}``.

    Raises:
      ValueError: as in `mask_lora`.
      TypeError: as in `mask_lora`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune import recovery
      >>> params = {"kernel": jnp.array([[2.0, 0.0], [0.0, 3.0]])}
      >>> masks = {"kernel": jnp.eye(2, dtype=bool)}
      >>> adapters = recovery.scale_lora(params, masks, rank=1)
      >>> doubled = jax.tree.map(lambda x: 2.0 * x, adapters)
      >>> recovery.merge(params, masks, doubled)["kernel"].tolist()
      [[8.0, 0.0], [0.0, 12.0]]

    Reference:
      Zimmer et al., PERP: Rethinking the prune-retrain paradigm in the era of LLMs,
      arXiv:2312.15230.
    """
    _check_rank(rank)
    found = {}
    for path, weight in _masked(params, masks, where).items():
        matrices = layout(graph, path, weight)
        a, b = _shapes(matrices, rank)
        start = jnp.float32(1.0 / math.sqrt(rank))
        found[path] = ScaleLoRA(jnp.full(a, start), jnp.full(b, start), 1.0, matrices)
    return found


def lora(
    params: Tree,
    *,
    where: Where,
    key: jax.Array,
    rank: int = 16,
    alpha: float = 32.0,
    graph: Graph | None = None,
) -> dict[str, LoRA]:
    """Make ordinary LoRA adapters, for weights that are not pruned, such as the head.

    Args:
      params: parameters in any container.
      where: which weights, as in `jaxprune.make_masks`.
      key: from `jax.random.key`.
      rank: as in `mask_lora`.
      alpha: as in `mask_lora`.
      graph: as in `mask_lora`.

    Returns:
      ``{path: LoRA}``. They merge densely where there is no mask.

    Raises:
      ValueError: as in `mask_lora`, or nothing selected.
      TypeError: as in `mask_lora`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune import recovery
      >>> params = {"head": jnp.zeros((2, 3)), "body": jnp.zeros((2, 2))}
      >>> adapters = recovery.lora(params, where="head", rank=1, alpha=2.0,
      ...                          key=jax.random.key(0))
      >>> trained = jax.tree.map(jnp.ones_like, adapters)
      >>> recovery.merge(params, None, trained)["head"].tolist()
      [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]

    Reference:
      Hu et al., LoRA: Low-rank adaptation of large language models, arXiv:2106.09685.
    """
    made = _initial(key, rank, alpha, graph)
    return {path: LoRA(*made(path, w)) for path, w in select(params, where).items()}


Made = Callable[[str, Any], tuple[jax.Array, jax.Array, float, Layout]]


def _initial(key: jax.Array, rank: int, alpha: float, graph: Graph | None) -> Made:
    """Return ``(path, weight) -> fields``: a as LoRA draws it, b zero."""
    _check_rank(rank)
    if not 0.0 < alpha < math.inf:
        raise ValueError(
            f"alpha must be a positive number, got {alpha!r}. The change is multiplied with "
            "alpha / rank."
        )
    number = iter(range(1 << 31))

    def made(path: str, weight: Any) -> tuple[jax.Array, jax.Array, float, Layout]:
        matrices = layout(graph, path, weight)
        a, b = _shapes(matrices, rank)
        bound = 1.0 / math.sqrt(matrices.inputs)  # Kaiming-uniform with a = √5
        own = jax.random.fold_in(key, next(number))
        drawn = jax.random.uniform(own, a, jnp.float32, -bound, bound)
        return drawn, jnp.zeros(b, jnp.float32), alpha / rank, matrices

    return made


def _shapes(matrices: Layout, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    outputs = math.prod(matrices.shape) // math.prod(matrices.lead) // matrices.inputs
    return (*matrices.lead, matrices.inputs, rank), (*matrices.lead, rank, outputs)


def _check_rank(rank: Any) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise TypeError(f"rank must be an integer, got {rank!r} of type {type(rank).__name__}.")
    if rank < 1:
        raise ValueError(f"rank must be 1 or more, got {rank}. It is the columns of a.")


def _masked(params: Tree, masks: Tree, where: Where | None) -> Mapping[str, Any]:
    """Return the chosen weights that have a mask, by path in tree order."""
    leaves, kept = paths.flatten(params), mask_leaves(masks)
    check_masks(leaves, kept)
    if not kept:
        raise ValueError(
            "masks holds no mask. Pass the masks that jaxprune.prune, make_masks, prune_blocks or "
            "get_masks returned."
        )
    chosen = kept if where is None else select(params, where)
    bare = [path for path in chosen if path not in kept]
    if bare:
        raise ValueError(
            f"where selects {paths.listed(bare)}, which masks has no entry for. Leave it out, or "
            "adapt it with recovery.lora, which needs no mask."
        )
    return {path: leaf for path, leaf in leaves.items() if path in chosen}
