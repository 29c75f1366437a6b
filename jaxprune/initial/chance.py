"""Prune before training by chance: only the densities of the layers are chosen."""

import jax
import jax.numpy as jnp

from jaxprune import allocation as allocations
from jaxprune._core.prunable import Where, default_where, select
from jaxprune.masks import make_masks, selected_tree
from jaxprune.schedules import as_sparsity
from jaxprune.scores import random
from jaxprune.types import Allocation, Tree


def random_masks(
    params: Tree,
    sparsity: float,
    key: jax.Array,
    *,
    allocation: Allocation = allocations.erdos_renyi_kernel,
    exact: bool = True,
    where: Where = default_where,
) -> Tree:
    """Draw random masks with the densities of an allocation.

    ``m = U[0, 1) < density_l`` with ``exact=False``, so that counts vary as in the paper's code;
    otherwise the weights with the largest numbers, exactly as many as the allocation says. The
    numbers depend on the key, the path and the shape only.

    Args:
      params: tree of arrays.
      sparsity: share of zeros among the prunable weights, in [0, 1).
      key: a key from ``jax.random.key``.
      allocation: how the budget is divided, as in `make_masks`.
      exact: whether the counts are those of the allocation, instead of random ones.
      where: which leaves are prunable, as in `make_masks`.

    Returns:
      The masks: tree like ``params``, True = kept, ``optax.MaskedNode()`` where not prunable.

    Raises:
      ValueError: sparsity out of range, nothing selected, or what the allocation refuses.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxprune import initial
      >>> params = {"one": jnp.ones((10, 10)), "two": jnp.ones((100, 100))}
      >>> masks = initial.random_masks(params, 0.9, jax.random.key(0))
      >>> {path: int(mask.sum()) for path, mask in masks.items()}
      {'one': 92, 'two': 918}

    Reference:
      Liu et al., The unreasonable effectiveness of random pruning, arXiv:2202.02643.
    """
    sparsity = as_sparsity("sparsity", sparsity)
    leaves = select(params, where)
    drawn = random(selected_tree(params, leaves), key)
    if exact:
        return make_masks(drawn, sparsity, allocation=allocation, where=".*")
    densities = allocation({path: leaf.shape for path, leaf in leaves.items()}, sparsity)
    numbers = select(drawn, ".*")
    return selected_tree(
        drawn, {path: numbers[path] < jnp.float32(min(densities[path], 1.0)) for path in leaves}
    )
