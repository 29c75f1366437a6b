"""Sparse changes of a weight, kept as indices and values (sparse fine-tuning)."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune._core.prunable import Where, default_where, select
from jaxprune._core.select import top_k_mask
from jaxprune._core.stacks import over_layers
from jaxprune.graph import Graph
from jaxprune.graph.matrix import Layout
from jaxprune.masks import mask_leaves
from jaxprune.recovery.adapters import keep, layout, wide_dtype
from jaxprune.types import Tree

_STATIC: dict[str, Any] = {"static": True}
_SORTED = 1 << 12  # up to here sorting is faster than a search, to compile, too
_MOST = 1 << 31  # entries of one matrix: its flat indices are 32-bit integers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseDelta:
    """A change of k scattered entries of each of a weight's matrices; see :func:`sparse_deltas`.

    Attributes:
      indices: int32 ``(*lead, k)``, of entries of the matrix (in, out) in row-major order. There
        is no order among them; none stands twice.
      values: float32 ``(*lead, k)``, what is added to the entry.
      layout: how the weight makes up matrices (in, out).
    """

    indices: jax.Array
    values: jax.Array
    layout: Layout = dataclasses.field(metadata=_STATIC, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.layout.shape

    @property
    def needs_mask(self) -> bool:
        """Whether it would bring pruned weights back without the weight's mask."""
        return False

    @property
    def matrices(self) -> tuple[int, ...]:
        """Shape of the weight written as matrices, ``(*lead, in, out)``."""
        lead, inputs = self.layout.lead, self.layout.inputs
        return (*lead, inputs, math.prod(self.shape) // math.prod(lead) // inputs)

    def effective(self, weight: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return the weight with the values added at the indices, zero where pruned."""
        matrix = self.layout.matrix(weight)
        wide = matrix.astype(wide_dtype(weight.dtype))
        changed = over_layers(_added, len(self.layout.lead))(wide, self.indices, self.values)
        return keep(mask, self.layout.weight(changed.astype(weight.dtype)))

    def merged(self, weight: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return what `effective` does."""
        return self.effective(weight, mask)


def sparse_deltas(
    params: Tree,
    count: int,
    *,
    key: jax.Array,
    masks: Tree = None,
    where: Where = default_where,
    graph: Graph | None = None,
) -> dict[str, SparseDelta]:
    """Choose scattered entries of the weights at random, to be fine-tuned (SFT).

    Each matrix has its share of ``count``, ``⌊count · size / total size⌋``, so that a weight of
    stacked layers has as many in each. Values start at 0. `sft_ag` and `sft_ma` train them and
    move them to where they do more.

    Args:
      params: parameters in any container.
      count: entries in all, at most.
      key: from `jax.random.key`.
      masks: choose among kept weights alone, so that merging keeps the masks; None for all.
      where: which weights, as in `jaxprune.make_masks`.
      graph: as in `mask_lora`.

    Returns:
      ``{path: SparseDelta}``, for `effective_params` and `merge`. A weight whose share is 0 has
      none.

    Raises:
      ValueError: a share of 0 for all weights or beyond a weight's kept entries, a matrix of 2**31
        entries or more, or no matrix and no graph.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune import recovery
      >>> params = {"kernel": jnp.zeros((4, 4))}
      >>> deltas = recovery.sparse_deltas(params, 4, key=jax.random.key(0))
      >>> trained = jax.tree.map(lambda x: x + 1 if x.dtype == jnp.float32 else x, deltas)
      >>> int(recovery.merge(params, None, trained)["kernel"].sum())
      4

    Reference:
      Ansell et al., Scaling sparse fine-tuning to large language models, arXiv:2401.16405.
    """
    weights, kept = select(params, where), mask_leaves(masks)
    total = sum(math.prod(weight.shape) for weight in weights.values())
    found: dict[str, SparseDelta] = {}
    for number, (path, weight) in enumerate(weights.items()):
        matrices = layout(graph, path, weight)
        size = math.prod(weight.shape) // math.prod(matrices.lead)
        share = int(count * size / total)
        mask = kept.get(path)
        allowed = None if mask is None else matrices.matrix(mask)
        _check(path, share, size, allowed)
        if share:
            own = jax.random.fold_in(key, number)
            shape = (*matrices.lead, size)
            indices = _drawn(own, None if allowed is None else allowed.reshape(shape), shape, share)
            values = jnp.zeros(indices.shape, jnp.float32)
            found[path] = SparseDelta(indices, values, matrices)
    if weights and not found:
        raise ValueError(
            f"count={count} leaves no entry for any of the {len(weights)} weights, which have "
            f"{total} together. Give a larger count."
        )
    return found


def at_entries(delta: SparseDelta, matrices: jax.Array) -> jax.Array:
    """Return what dense matrices ``(*lead, in, out)`` have at the entries, ``(*lead, k)``."""
    take = over_layers(lambda matrix, at: matrix.ravel()[at], len(delta.layout.lead))
    return take(matrices, delta.indices)


def largest(scores: jax.Array, count: int) -> jax.Array:
    """Return the flat indices of the largest scores in ascending order; int32 (count,).

    Ties go to the lower index; NaN is the lowest.
    """
    flat = scores.ravel()
    if flat.size <= _SORTED:
        lowest = jnp.full_like(flat, -jnp.inf)
        order = jnp.argsort(jnp.where(jnp.isnan(flat), lowest, flat), descending=True, stable=True)
        return jnp.sort(order[:count]).astype(jnp.int32)
    (indices,) = jnp.nonzero(top_k_mask(flat, count), size=count)
    return indices.astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=(2, 3))  # once for all weights of one size
def _drawn(
    key: jax.Array, allowed: jax.Array | None, shape: tuple[int, ...], count: int
) -> jax.Array:
    """Draw entries of each matrix without repetition, in ascending order; ``(*lead, count)``."""
    scores = jax.random.uniform(key, shape, jnp.float32)
    if allowed is not None:
        scores = jnp.where(allowed, scores, jnp.full_like(scores, -1.0))
    return over_layers(functools.partial(largest, count=count), len(shape) - 1)(scores)


def _added(matrix: jax.Array, indices: jax.Array, values: jax.Array) -> jax.Array:
    row, column = jnp.divmod(indices, jnp.int32(matrix.shape[1]))
    # Distinct indices: the order of the additions does not matter.
    return matrix.at[row, column].add(values.astype(matrix.dtype), unique_indices=True)


def _check(path: str, share: int, size: int, allowed: jax.Array | None) -> None:
    if size >= _MOST:
        raise ValueError(
            f"{path!r} has a matrix of {size} entries; indices are 32-bit and reach {_MOST - 1}. "
            "Leave it out with where=."
        )
    least = size
    if allowed is not None and not isinstance(allowed, Tracer):
        least = int(jnp.min(jnp.sum(allowed, axis=(-2, -1), dtype=jnp.int32)))
    if share > least:
        raise ValueError(
            f"the share of {path!r} is {share} entries for each matrix, of which {least} are kept. "
            "Give a smaller count, or leave the weight out with where=."
        )
