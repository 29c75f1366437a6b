"""Wanda's row-adaptive variant: each output loses the same share of its sum of scores."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.schedules import as_sparsity
from jaxprune.types import Mask


class Cumulative(NamedTuple):
    """What `cumulative_search` found."""

    mask: jax.Array  # (in, out) bool, True = kept
    share: jax.Array  # (), of each output's sum of scores that may be pruned; float32
    sparsity: jax.Array  # (), that was reached; float32


_Bracket = tuple[jax.Array, jax.Array, Cumulative]


def cumulative(scores: jax.Array, sparsity: Any, /, *, keep_last: bool = True) -> Mask:
    """Prune the same share of each output's sum of scores: Wanda's row-adaptive variant.

    See `cumulative_search`.

    Args:
      scores: (in, out), not negative.
      sparsity: share of zeros in the matrix, in [0, 1); reached within 0.001 where it can be.
      keep_last: without effect; of equal scores all are kept or none.

    Returns:
      Boolean (in, out), True = kept.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> scores = jnp.array([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0], [10.0, 7.0]])
      >>> posttraining.cumulative(scores, 0.5).sum(axis=0).tolist()
      [1, 3]
    """
    del keep_last
    return cumulative_search(scores, sparsity).mask


def cumulative_search(scores: jax.Array, sparsity: Any, /) -> Cumulative:
    """Search for the share of each output's sum of scores whose removal gives the sparsity.

    With a share α, an output loses its smallest scores as long as their sum is at most α times the
    sum of all, and those that equal the last of them. α is found by bisection of [0, 0.8], until
    the sparsity is within 0.001 or the bracket shorter than 0.001: high sparsities are not
    reached. Where the smallest score alone exceeds its share nothing is pruned; the published code
    fails there.

    Args:
      scores: (in, out), not negative.
      sparsity: share of zeros in the matrix, in [0, 1).

    Returns:
      The mask, α, and the sparsity that was reached.

    Raises:
      ValueError: a sparsity outside [0, 1).
      TypeError: a sparsity that is not a number.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> scores = jnp.array([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0], [10.0, 7.0]])
      >>> found = posttraining.cumulative_search(scores, 0.5)
      >>> round(float(found.share), 3), float(found.sparsity)
      (0.4, 0.5)
    """
    goal = sparsity if isinstance(sparsity, jax.Array) else as_sparsity("sparsity", sparsity)
    goal = jnp.asarray(goal, jnp.float32)
    scores = scores.astype(jnp.float32)
    ranked = jnp.sort(scores, axis=0)
    sums = jnp.cumsum(ranked, axis=0)
    totals = jnp.sum(scores, axis=0, keepdims=True)

    def at(share: jax.Array) -> Cumulative:
        count = jnp.sum(sums <= totals * share, axis=0, keepdims=True, dtype=jnp.int32)
        last = jnp.take_along_axis(ranked, jnp.maximum(count - 1, 0), axis=0)
        mask = scores > jnp.where(count > 0, last, -jnp.inf)
        pruned = jnp.sum(~mask, dtype=jnp.int32).astype(jnp.float32)
        return Cumulative(mask, share, pruned / np.float32(scores.size))

    def unfinished(state: _Bracket) -> jax.Array:
        low, high, found = state
        return (jnp.abs(found.sparsity - goal) > 1e-3) & (high - low >= 1e-3)

    def halved(state: _Bracket) -> _Bracket:
        low, high, found = state
        over = found.sparsity > goal
        low, high = jnp.where(over, low, found.share), jnp.where(over, found.share, high)
        return low, high, at((low + high) / 2)

    start = (jnp.float32(0.0), jnp.float32(0.8), at(jnp.float32(0.4)))
    return lax.while_loop(unfinished, halved, start)[2]
