"""What is trained in a weight's place: the weight that the forward pass sees, and merging."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxprune._core import paths
from jaxprune.graph import Graph
from jaxprune.graph.matrix import Layout, layout_of
from jaxprune.masks import apply_masks, mask_leaves
from jaxprune.types import Tree


class Adapter(Protocol):
    """What is trained of one weight; a pytree whose floating-point leaves are the trainables."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        ...

    @property
    def needs_mask(self) -> bool:
        """Whether it would bring pruned weights back without the weight's mask."""
        ...

    def effective(self, weight: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return the weight that the forward pass sees; pruned ones of ``weight`` are zero."""
        ...

    def merged(self, weight: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return the weight that is kept after training; zero where pruned."""
        ...


def effective_params(params: Tree, masks: Tree, adapters: Mapping[str, Adapter]) -> Tree:
    """Return the parameters that the forward pass sees while adapters are trained.

    Differentiate the loss of it with regard to the adapters; the parameters stay as they are.
    Sums are formed in float32 and rounded to the parameter's dtype.

    Args:
      params: parameters in any container.
      masks: masks in any container, matched by path, True = kept; None without masks.
      adapters: ``{path: adapter}``, as `mask_lora` and the others make them.

    Returns:
      Tree like ``params``. Pruned weights are exactly zero, except for those of a ``LoRA``, which
      trains a dense change.

    Raises:
      ValueError: an adapter has no parameter, another shape, or not the mask that it needs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune import recovery
      >>> params = {"kernel": jnp.array([[2.0, 0.0], [0.0, 3.0]]), "bias": jnp.zeros(2)}
      >>> masks = {"kernel": jnp.eye(2, dtype=bool)}
      >>> adapters = recovery.mask_lora(params, masks, rank=1, alpha=1.0, key=jax.random.key(0))
      >>> def loss(adapters):
      ...     seen = recovery.effective_params(params, masks, adapters)
      ...     return jnp.sum(seen["kernel"])
      >>> slope = jax.grad(loss)(adapters)["kernel"]
      >>> bool(jnp.all(slope.b != 0)), bool(jnp.all(slope.a == 0))
      (True, True)
    """
    return _replaced(params, masks, adapters, merge=False)


def merge(params: Tree, masks: Tree, adapters: Mapping[str, Adapter]) -> Tree:
    """Write what was trained into the parameters.

    Args:
      params: parameters in any container.
      masks: as in `effective_params`.
      adapters: as in `effective_params`.

    Returns:
      Tree like ``params``, in its dtypes. Weights that the masks prune are exactly zero, whatever
      the adapter. It is what `effective_params` gave, unless a ``LoRA`` has a mask.

    Raises:
      ValueError: as in `effective_params`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import recovery
      >>> params = {"kernel": jnp.array([[2.0, 0.0], [0.0, 3.0]])}
      >>> masks = {"kernel": jnp.eye(2, dtype=bool)}
      >>> adapters = recovery.full({"kernel": jnp.ones((2, 2))}, where="kernel")
      >>> recovery.merge(params, masks, adapters)["kernel"].tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    return _replaced(params, masks, adapters, merge=True)


def count_trainable(adapters: Any) -> int:
    """Return how many numbers are trained: the floating-point entries, and not the indices.

    Args:
      adapters: ``{path: adapter}``, or any other tree of arrays.

    Returns:
      The number of entries of its floating-point leaves.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune import recovery
      >>> params = {"kernel": jnp.ones((8, 4))}
      >>> recovery.count_trainable(recovery.lora(params, where="kernel", rank=2,
      ...                                        key=jax.random.key(0)))
      24
    """
    leaves = jax.tree.leaves(adapters)
    return sum(leaf.size for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact))


def layout(graph: Graph | None, path: str, weight: Any) -> Layout:
    """Return how a weight makes up matrices (in, out); without a graph, a matrix does as it is.

    Raises:
      ValueError: no matrix and no graph, or a graph that does not know.
    """
    shape = tuple(weight.shape)
    if graph is not None:
        return layout_of(graph.program, path)
    if len(shape) != 2:
        raise ValueError(
            f"{path!r} has shape {shape}, and only a matrix tells its inputs from its outputs by "
            "itself. Pass graph=jaxprune.trace(apply, params, inputs), or leave it out with where=."
        )
    return Layout(shape, shape, (0, 1), (), shape[0])


def keep(mask: jax.Array | None, weight: jax.Array) -> jax.Array:
    """Set what is pruned to exactly zero."""
    return weight if mask is None else jnp.where(mask, weight, jnp.zeros_like(weight))


def added(weight: jax.Array, change: jax.Array) -> jax.Array:
    """Add a float32 change to a weight of any floating-point dtype, rounding once."""
    wide = wide_dtype(weight.dtype)
    return (weight.astype(wide) + change.astype(wide)).astype(weight.dtype)


def wide_dtype(dtype: Any) -> Any:
    """Return the dtype that sums are formed in: float32, or wider if the weight's is."""
    return dtype if jnp.dtype(dtype).itemsize > 4 else jnp.float32


def _replaced(params: Tree, masks: Tree, adapters: Mapping[str, Adapter], *, merge: bool) -> Tree:
    pruned = apply_masks(params, masks)
    leaves, kept = paths.flatten(pruned), mask_leaves(masks)
    found = {}
    for path, adapter in adapters.items():
        _check(path, adapter, leaves, kept)
        change = adapter.merged if merge else adapter.effective
        found[path] = change(leaves[path], kept.get(path))
    return paths.refill(pruned, found, lambda path, leaf: leaf)


def _check(path: str, adapter: Adapter, leaves: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    if path not in leaves:
        raise ValueError(
            f"adapters has an entry without a parameter: {path!r}. The parameters are "
            f"{paths.listed(leaves)}. Pass adapters made for these parameters."
        )
    if adapter.shape != leaves[path].shape:
        raise ValueError(
            f"the adapter of {path!r} is for shape {adapter.shape}, its parameter has "
            f"{leaves[path].shape}. Pass adapters made for these parameters."
        )
    if adapter.needs_mask and path not in kept:
        raise ValueError(
            f"{path!r} has a {type(adapter).__name__} and no mask, without which pruned weights "
            "would come back. Pass the masks that the adapters were made with."
        )
