"""How the scores of one matrix become a mask: which weights compete, and how many are kept.

A selection is a function ``(scores (in, out), sparsity, *, keep_last) -> mask``. Of equal scores,
that of the higher index is kept: the published codes prune the first ones of a stable ascending
sort. ``keep_last=False`` keeps the lower index, as patterns and `top_k_mask` do.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._core.select import top_k_mask
from jaxprune.patterns import NM
from jaxprune.posttraining.matrix import Pruned, Target
from jaxprune.schedules import as_sparsity
from jaxprune.types import Mask


class Select(Protocol):
    """``(scores (in, out), sparsity, *, keep_last) -> mask (in, out)``, True = kept."""

    def __call__(self, scores: jax.Array, sparsity: Any, /, *, keep_last: bool) -> Mask:
        """Return the mask; ``sparsity`` is a number in [0, 1), or traced."""
        ...


def per_output(scores: jax.Array, sparsity: Any, /, *, keep_last: bool = True) -> Mask:
    """Let the inputs of each output compete: each keeps the same number.

    Of each column ``⌊in · sparsity⌋`` weights are pruned, exactly; the product is of Python floats,
    as in published code, so that 0.29 of 100 is 28. A traced sparsity is float32, in which such a
    product may be one more, and in a matrix of many millions differ by a few.

    Args:
      scores: (in, out).
      sparsity: share of zeros, in [0, 1).
      keep_last: of equal scores, keep those of higher index.

    Returns:
      Boolean (in, out), True = kept.

    Raises:
      ValueError: a sparsity outside [0, 1), or NaN scores (outside ``jit``).
      TypeError: a sparsity that is not a number.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> posttraining.per_output(jnp.array([[1.0, 20.0], [2.0, 10.0]]), 0.5)
      Array([[False,  True],
             [ True, False]], dtype=bool)
    """
    kept = scores.shape[0] - pruned_count(scores.shape[0], sparsity)
    return _ordered(scores, lambda s: top_k_mask(s, kept, axis=0), keep_last)


def per_matrix(scores: jax.Array, sparsity: Any, /, *, keep_last: bool = True) -> Mask:
    """Let all weights of the matrix compete.

    ``⌊in · out · sparsity⌋`` weights are pruned, exactly.

    Args:
      scores: (in, out).
      sparsity: share of zeros, in [0, 1).
      keep_last: of equal scores, keep those of higher flat index.

    Returns:
      Boolean (in, out), True = kept.

    Raises:
      ValueError: a sparsity outside [0, 1), or NaN scores (outside ``jit``).
      TypeError: a sparsity that is not a number.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> posttraining.per_matrix(jnp.array([[1.0, 20.0], [2.0, 10.0]]), 0.5)
      Array([[False,  True],
             [False,  True]], dtype=bool)
    """
    kept = scores.size - pruned_count(scores.size, sparsity)
    return _ordered(scores, lambda s: top_k_mask(s, kept), keep_last)


def below_threshold(scores: jax.Array, sparsity: Any, /, *, keep_last: bool = True) -> Mask:
    """Prune all weights of the matrix up to a threshold: magnitude and RIA as published.

    The threshold is the score of rank ``⌊in · out · sparsity⌋`` from below, counted from 0, and
    goes too, with all that equal it: one weight more than `per_matrix` prunes, or many if scores
    repeat. Even sparsity 0 prunes one.

    Args:
      scores: (in, out).
      sparsity: share of zeros, in [0, 1).
      keep_last: without effect; of equal scores all are kept or none.

    Returns:
      Boolean (in, out), True = kept.

    Raises:
      ValueError: a sparsity outside [0, 1), or NaN scores (outside ``jit``).
      TypeError: a sparsity that is not a number.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> posttraining.below_threshold(jnp.array([[1.0, 20.0], [2.0, 10.0]]), 0.5)
      Array([[False,  True],
             [False, False]], dtype=bool)
    """
    del keep_last
    best = top_k_mask(scores, scores.size - pruned_count(scores.size, sparsity))
    return scores > jnp.min(jnp.where(best, scores, jnp.full_like(scores, jnp.inf)))


def per_input_block(
    scores: jax.Array, sparsity: Any, /, *, keep_last: bool = True, size: int = 128
) -> Mask:
    """Let the weights of ``size`` neighbouring inputs compete, of all outputs together.

    D-Pruner's iterative blocking, and the groups of SparseGPT: ``⌊size · out · sparsity⌋`` weights
    of each block are pruned, exactly. The last block may be shorter.

    Args:
      scores: (in, out).
      sparsity: share of zeros, in [0, 1).
      keep_last: of equal scores, keep those of higher flat index.
      size: inputs of a block; set another with ``functools.partial``.

    Returns:
      Boolean (in, out), True = kept.

    Raises:
      ValueError: a size below 1, a sparsity outside [0, 1), or NaN scores (outside ``jit``).
      TypeError: a sparsity that is not a number.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> scores = jnp.array([[1.0, 20.0], [2.0, 10.0], [3.0, 5.0], [4.0, 6.0]])
      >>> posttraining.per_input_block(scores, 0.5, size=2).sum(axis=0).tolist()
      [0, 4]
    """
    if size < 1:
        raise ValueError(f"size must be 1 or more, got {size}. It is the inputs of a block.")
    inputs, outputs = scores.shape
    whole = inputs - inputs % size

    def choose(blocks: jax.Array) -> Mask:
        count = blocks.shape[1] * outputs
        kept = count - pruned_count(count, sparsity)
        return _ordered(blocks, lambda s: top_k_mask(s, kept, axis=(1, 2)), keep_last)

    parts = [choose(scores[:whole].reshape(-1, size, outputs)).reshape(whole, outputs)]
    if whole < inputs:
        parts.append(choose(scores[None, whole:])[0])
    return jnp.concatenate(parts)


def per_group(scores: jax.Array, pattern: NM, /, *, keep_last: bool = True) -> Mask:
    """Keep n of every m consecutive inputs of each output.

    Args:
      scores: (in, out).
      pattern: its ``axis`` is not read: groups run along the inputs.
      keep_last: of equal scores, keep those of higher index.

    Returns:
      Boolean (in, out), True = kept.

    Raises:
      ValueError: a number of inputs that is not a multiple of m, unless the pattern pads.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> from jaxprune import posttraining
      >>> scores = jnp.array([[1.0], [1.0], [5.0], [4.0]])
      >>> posttraining.per_group(scores, jaxprune.NM(1, 2)).ravel().tolist()
      [False, True, True, False]
    """
    pattern = dataclasses.replace(pattern, axis=0)
    pattern.check("weight (in, out)", scores.shape)
    if not keep_last:
        return pattern.mask(scores, pattern.n)
    return _turned(pattern.mask(_turned(scores, pattern.m), pattern.n), pattern.m)


def prune_by(
    weight: jax.Array,
    scores: jax.Array,
    target: Target,
    *,
    select: Select = per_matrix,
    keep_last: bool = True,
) -> Pruned:
    """Prune one matrix by given scores; the weights that are kept do not change.

    Args:
      weight: (in, out).
      scores: (in, out); higher = kept.
      target: an ``NM`` pattern gives the sparsity itself; ``sparsity`` counts without one.
      select: which weights compete, without an ``NM`` pattern.
      keep_last: of equal scores, keep those of higher index.

    Returns:
      The weight, in its own dtype, and its mask.

    Raises:
      ValueError: scores of another shape, a sparsity outside [0, 1), groups that do not fit, or
        NaN scores (outside ``jit``).
      TypeError: a sparsity that is not a number.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> weight, scores = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[0.9, 0.1], [0.2, 0.8]])
      >>> posttraining.prune_by(weight, scores, posttraining.Target(0.5)).weight
      Array([[1., 0.],
             [0., 4.]], dtype=float32)
    """
    if scores.shape != weight.shape:
        raise ValueError(
            f"scores have shape {scores.shape}, the weight {weight.shape}. Give one score for each "
            "weight of the matrix (in, out)."
        )
    mask = chosen(scores, target, select, keep_last=keep_last)
    return Pruned(jnp.where(mask, weight, jnp.zeros_like(weight)), mask)


def chosen(scores: jax.Array, target: Target, select: Select, *, keep_last: bool = True) -> Mask:
    """Return the mask of scores: by the target's groups, or by a selection where it has none."""
    if isinstance(target.pattern, NM):
        return per_group(scores, target.pattern, keep_last=keep_last)
    return select(scores, target.sparsity, keep_last=keep_last)


def pruned_count(size: int, sparsity: Any) -> Any:
    """Return ``⌊size · sparsity⌋``: an int, or int32 for a traced sparsity."""
    if isinstance(sparsity, jax.Array):
        # 0.7 is a little less in float32, and 70% of 10 weights are still 7.
        share = np.float32(size) * sparsity.astype(jnp.float32)
        return jnp.floor(share + 1e-3).astype(jnp.int32)
    return int(size * as_sparsity("sparsity", sparsity))


def _ordered(scores: jax.Array, choose: Callable[[jax.Array], Mask], keep_last: bool) -> Mask:
    """Choose from the end if the last of equal scores is to be kept: the first is, otherwise."""
    return jnp.flip(choose(jnp.flip(scores))) if keep_last else choose(scores)


def _turned(x: jax.Array, group: int) -> jax.Array:
    """Reverse the order of inputs, but leave a last group that is short in its place."""
    whole = x.shape[0] - x.shape[0] % group
    return jnp.concatenate([x[:whole][::-1], x[whole:][::-1]])
