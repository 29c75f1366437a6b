"""What becomes of an optimizer's moments where weights are dropped or grown."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxprune._core import paths
from jaxprune._core.meshes import known_axes
from jaxprune.transforms._timetable import gate
from jaxprune.types import Tree

_Masks: TypeAlias = dict[str, jax.Array]

Moments: TypeAlias = Callable[[Tree, Tree, _Masks, _Masks, jax.Array], Tree]
"""``(state, fresh state, old masks, new masks, changes) -> state`` of the inner optimizer.

It runs in every call of update, and leaves the state where old and new masks are equal. ``changes``
is a () bool: False where they are, so that what costs more than a look at each entry can be gated.
"""


def fresh(state: Tree, start: Tree, old: _Masks, new: _Masks, changes: jax.Array) -> Tree:
    """Let dropped and grown weights start again with the moments of a fresh optimizer.

    The published rule of RigL and others: entries where the mask changed return to their value in
    ``inner.init(params)``, which is 0 for most optimizers.

    Args:
      state: state of the inner optimizer. A leaf belongs to the weight whose path is its longest
        path suffix and whose shape it has; leaves of no weight's shape are left.
      start: state of a freshly initialised inner optimizer.
      old: ``{path: mask}`` before the change.
      new: ``{path: mask}`` after the change.
      changes: () bool, whether this is a call that changes masks.

    Returns:
      The state of the inner optimizer.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.transforms import moments
      >>> state, start = {"mu": {"w": jnp.array([3.0, 4.0, 5.0])}}, {"mu": {"w": jnp.zeros(3)}}
      >>> old, new = {"w": jnp.array([True, True, False])}, {"w": jnp.array([True, False, True])}
      >>> moments.fresh(state, start, old, new, jnp.array(True))["mu"]["w"].tolist()
      [3.0, 0.0, 0.0]

    Reference:
      Evci et al., Rigging the lottery, arXiv:1911.11134.
    """
    del changes

    def restart(leaf: jax.Array, first: jax.Array, before: jax.Array, after: jax.Array) -> Any:
        return jnp.where(before == after, leaf, first)

    return _map_owned(restart, state, start, old, new)


def mean_of_live(state: Tree, start: Tree, old: _Masks, new: _Masks, changes: jax.Array) -> Tree:
    """Let grown weights start with the mean second moment of the weights that stay.

    With a second moment of zero the first hundreds of Adam steps of a grown weight are up to 12
    times too large. Leaves that are nowhere negative take, at grown entries, their mean over the
    weights that were live before and after; all else is as in `fresh`.

    Args:
      state: as in `fresh`.
      start: as in `fresh`.
      old: as in `fresh`.
      new: as in `fresh`.
      changes: as in `fresh`; the means are computed only then.

    Returns:
      The state of the inner optimizer.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.transforms import moments
      >>> state, start = {"nu": {"w": jnp.array([3.0, 4.0, 0.0])}}, {"nu": {"w": jnp.zeros(3)}}
      >>> old, new = {"w": jnp.array([True, True, False])}, {"w": jnp.array([True, False, True])}
      >>> moments.mean_of_live(state, start, old, new, jnp.array(True))["nu"]["w"].tolist()
      [3.0, 0.0, 3.0]
    """

    def restart(leaf: jax.Array, first: jax.Array, before: jax.Array, after: jax.Array) -> Any:
        positive, mean = gate(changes, lambda: _mean(leaf, before & after), _no_mean(leaf))
        grown = jnp.where(positive & after & ~before, mean, first)
        return jnp.where(before == after, leaf, grown)

    return _map_owned(restart, state, start, old, new)


def _mean(leaf: jax.Array, stays: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return whether a leaf is nowhere negative, and its mean over the weights that stay."""
    counted = (
        jnp.sum(~(leaf >= 0), dtype=jnp.float32),
        jnp.sum(stays, dtype=jnp.float32),
        jnp.sum(jnp.where(stays, leaf, jnp.zeros_like(leaf)), dtype=jnp.float32),
    )
    names = known_axes(leaf)  # of a shard, what all of them hold
    below, many, total = jax.lax.psum(counted, names) if names else counted
    return below == 0, (total / jnp.maximum(many, 1.0)).astype(leaf.dtype)


def _no_mean(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((), bool), jnp.zeros((), leaf.dtype)


def _map_owned(fn: Callable[..., Any], state: Tree, start: Tree, old: Tree, new: Tree) -> Tree:
    """Apply ``fn(leaf, fresh leaf, old mask, new mask)`` to the leaves that belong to a weight."""

    def one(key_path: Any, leaf: Any, first: Any) -> Any:
        owner = paths.owner_of(paths.path_of(key_path), jnp.shape(leaf), old)
        floating = owner is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
        if not floating:
            return leaf
        # Gradients wider than the parameters widen a state after its first step.
        return fn(leaf, jnp.asarray(first, leaf.dtype), old[owner], new[owner])

    return jax.tree_util.tree_map_with_path(one, state, start)
