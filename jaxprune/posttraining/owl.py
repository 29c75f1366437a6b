"""OWL: blocks with more outliers among their scores are kept denser."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.patterns import NM
from jaxprune.schedules import as_sparsity

_LEAST = 0.01  # the sparsity of a block that would otherwise have none


def outlier_ratio(scores: Iterable[jax.Array], *, multiple: float = 5.0) -> jax.Array:
    """Return the share of a block's scores that are far above their mean.

    ``share of all scores that exceed multiple · mean(all scores)``, over all matrices of the block
    together. The published code gives it in per cent; the allocation does not depend on that.

    Args:
      scores: of each matrix of one block, in any shapes: Wanda's, on the dense model.
      multiple: how many means an outlier exceeds.

    Returns:
      Scalar in [0, 1], float32.

    Raises:
      ValueError: no scores.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> block = [jnp.ones((4, 2)), jnp.array([[1.0, 100.0]])]
      >>> float(posttraining.outlier_ratio(block))
      0.10000000149011612

    Reference:
      Yin et al., Outlier weighed layerwise sparsity (OWL), arXiv:2310.05175.
    """
    wide = [jnp.asarray(leaf).astype(jnp.float32) for leaf in scores]
    size = sum(leaf.size for leaf in wide)
    if not size:
        raise ValueError("outlier_ratio got no scores. Give those of each matrix of the block.")
    mean = sum(jnp.sum(leaf) for leaf in wide) / np.float32(size)
    counts = [jnp.sum(leaf > multiple * mean, dtype=jnp.int32) for leaf in wide]
    return sum((count.astype(jnp.float32) for count in counts), jnp.float32(0)) / np.float32(size)


def owl_sparsities(ratios: Any, sparsity: float, *, spread: float = 0.08) -> np.ndarray:
    """Divide a sparsity among blocks by their outliers (OWL).

    ``q = 2 · spread · (r − min r) / (max r − min r)`` and
    ``sparsity_l = sparsity + mean(q) − q_l``: the mean over the blocks is the sparsity that was
    asked for, and all lie in a band of width 2 · spread. Blocks that do not differ get the same,
    where the published code divides by 0. A sparsity of 0 or less becomes 0.01, as in the published
    code.

    Args:
      ratios: (blocks,), from `outlier_ratio`, in any unit.
      sparsity: mean over the blocks, in [0, 1).
      spread: half the width of the band.

    Returns:
      Sparsity of each block, (blocks,) float64, on the host.

    Raises:
      ValueError: ratios that are not one finite number for each block, a sparsity outside [0, 1),
        or a block that would lose all its weights.
      TypeError: a sparsity that is not a number.

    Example:
      >>> from jaxprune import posttraining
      >>> posttraining.owl_sparsities([0.01, 0.02, 0.05], 0.7).round(3).tolist()
      [0.767, 0.727, 0.607]

    Reference:
      Yin et al., Outlier weighed layerwise sparsity (OWL), arXiv:2310.05175.
    """
    goal = as_sparsity("sparsity", sparsity)
    bonus = _bonus(ratios, 2.0 * spread)
    found = goal + bonus.mean() - bonus
    if found.max() >= 1.0:
        raise ValueError(
            f"owl_sparsities: sparsity={goal} with spread={spread} gives block "
            f"{int(found.argmax())} a sparsity of {found.max():.4f}, which must stay below 1. "
            "Lower the spread or the sparsity."
        )
    return np.where(found <= 0.0, _LEAST, found)


def owl_patterns(ratios: Any, pattern: NM, *, spread: float = 2.0) -> list[NM]:
    """Give blocks different n of n:m by their outliers (OWL).

    ``q = spread · (r − min r) / (max r − min r)``; a block keeps ``n + round(q_l − mean(q))`` of m,
    within 1 and m. The published code turns a step of exactly +1 into +2; this does not.

    Args:
      ratios: (blocks,), from `outlier_ratio` with multiple 6 or 7, in any unit.
      pattern: the mean pattern.
      spread: how far apart the n of two blocks can be.

    Returns:
      The pattern of each block.

    Raises:
      ValueError: ratios that are not one finite number for each block.

    Example:
      >>> import jaxprune
      >>> from jaxprune import posttraining
      >>> posttraining.owl_patterns([0.01, 0.02, 0.05], jaxprune.NM(4, 8))
      [NM(n=3, m=8), NM(n=4, m=8), NM(n=5, m=8)]

    Reference:
      Yin et al., Outlier weighed layerwise sparsity (OWL), arXiv:2310.05175.
    """
    bonus = _bonus(ratios, spread)
    kept = np.clip(pattern.n + np.round(bonus - bonus.mean()), 1, pattern.m)
    return [dataclasses.replace(pattern, n=int(n)) for n in kept]


def _bonus(ratios: Any, width: float) -> np.ndarray:
    """Return the ratios, brought to [0, width]."""
    given = np.asarray(ratios, np.float64)
    if given.ndim != 1 or not given.size or not np.isfinite(given).all():
        raise ValueError(
            f"ratios must be one finite number for each block, got {given.tolist()}. "
            "outlier_ratio gives that of one block."
        )
    gap = given.max() - given.min()
    return (given - given.min()) * (width / gap) if gap > 0 else np.zeros_like(given)
