"""ECoFLaP: sparsities of blocks from the loss alone, without a backward pass."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.schedules import as_sparsity


def perturbed(
    weight: jax.Array, key: jax.Array, *, eps: float = 1e-3
) -> tuple[jax.Array, jax.Array]:
    """Return a weight moved by a random direction, forth and back.

    ``W + eps · z`` and ``W − eps · z`` with z standard normal: new arrays, so that the weight
    itself keeps its bits. The sum is made in float32 and rounded to the weight's dtype.

    Args:
      weight: of any shape; one at a time, while all others stay.
      key: random key; another for each sample.
      eps: length of the step.

    Returns:
      The two weights, in the weight's dtype.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> weight = jnp.ones((2, 3))
      >>> plus, minus = posttraining.perturbed(weight, jax.random.key(0), eps=0.5)
      >>> bool(jnp.allclose(plus + minus, 2 * weight)), bool((plus == minus).any())
      (True, False)

    Reference:
      Sung et al., ECoFLaP: efficient coarse-to-fine layer-wise pruning for vision-language models,
      arXiv:2310.02998; Malladi et al., Fine-tuning language models with just forward passes,
      arXiv:2305.17333.
    """
    step = eps * jax.random.normal(key, weight.shape, jnp.float32)
    wide = weight.astype(jnp.float32)
    return (wide + step).astype(weight.dtype), (wide - step).astype(weight.dtype)


def zeroth_order(plus: jax.Array, minus: jax.Array, *, eps: float = 1e-3) -> jax.Array:
    """Return the size of a gradient from losses at perturbed weights.

    ``Σ_samples |L(W + eps · z) − L(W − eps · z)| / (2 eps)``: a sum, not a mean, as in the
    published code.

    Args:
      plus: losses at ``W + eps · z``, (samples, ...), each with a direction of its own.
      minus: losses at ``W − eps · z``, of the same shape and directions.
      eps: the step of `perturbed`.

    Returns:
      One number for each weight, in float32.

    Raises:
      ValueError: losses of different shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> float(posttraining.zeroth_order(jnp.array([2.0, 1.0]), jnp.array([1.0, 3.0]), eps=0.5))
      3.0

    Reference:
      Sung et al., ECoFLaP: efficient coarse-to-fine layer-wise pruning for vision-language models,
      arXiv:2310.02998.
    """
    if plus.shape != minus.shape or not plus.ndim:
        raise ValueError(
            f"plus has shape {plus.shape} and minus {minus.shape}; both must be (samples, ...), "
            "losses at the two ends of the same steps."
        )
    change = plus.astype(jnp.float32) - minus.astype(jnp.float32)
    return jnp.sum(jnp.abs(change), axis=0) / (2.0 * eps)


def weighted_gradient(weight: jax.Array, gradient: jax.Array, *, power: int = 0) -> jax.Array:
    """Return the importance of a tensor, whose sum is added to its block's score.

    ``g`` for power 0, ``|W| · g`` for 1, ``W² · g²`` for 2.

    Args:
      weight: of any shape.
      gradient: size of its gradient: one number from `zeroth_order`, or first-order of the weight's
        shape: the mean of ``|g|`` for powers 0 and 1, the root mean square for 2.
      power: 0, 1 or 2. The published runs use 0.

    Returns:
      Float32; a scalar for power 0 and one number, of the weight's shape otherwise.

    Raises:
      ValueError: another power, or a gradient of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> weight, gradient = jnp.array([1.0, -2.0]), jnp.float32(3.0)
      >>> posttraining.weighted_gradient(weight, gradient, power=1)
      Array([3., 6.], dtype=float32)
      >>> float(posttraining.weighted_gradient(weight, gradient))
      3.0

    Reference:
      Sung et al., ECoFLaP: efficient coarse-to-fine layer-wise pruning for vision-language models,
      arXiv:2310.02998.
    """
    if power not in (0, 1, 2):
        raise ValueError(
            f"power must be 0, 1 or 2, got {power!r}. It is that of the weight in its importance."
        )
    if gradient.shape not in ((), weight.shape):
        raise ValueError(
            f"gradient has shape {gradient.shape}; give one number, or one for each weight of "
            f"shape {weight.shape}."
        )
    slope = jnp.abs(gradient.astype(jnp.float32))
    if power == 0:
        return slope
    return (jnp.abs(weight.astype(jnp.float32)) * slope) ** power


def ecoflap_sparsities(
    scores: Any,
    sizes: Any,
    sparsity: float,
    *,
    max_sparsity: float | None = None,
    published: bool = False,
) -> np.ndarray:
    """Divide a sparsity among blocks in proportion to their scores (ECoFLaP).

    Every block first gets what it keeps at ``max_sparsity``. The rest of the
    ``⌊(1 − sparsity) · Σ sizes⌋`` weights is handed out in proportion to the scores, again and
    again while blocks fill up; what rounding gave too much is taken back from the blocks that keep
    most. The total is then exact, unless all that is kept at ``max_sparsity`` is more.

    Args:
      scores: (blocks,), not negative: of each block the sum of `weighted_gradient` over its
        tensors, or that divided by its size.
      sizes: (blocks,), number of weights of each block.
      sparsity: share of zeros among all weights, in [0, 1).
      max_sparsity: the most of any block; None for ``round(sparsity + 0.1, 1)``, as in the
        published runs, but at most 1.
      published: do as the published code, which computes in float32 and, where it means to take
        weights back, adds them: the total is then too large.

    Returns:
      Sparsity of each block, (blocks,) float64, on the host.

    Raises:
      ValueError: scores or sizes that are not one number for each block, or a maximum below the
        sparsity.
      TypeError: a sparsity that is not a number.

    Example:
      >>> from jaxprune import posttraining
      >>> posttraining.ecoflap_sparsities([3.0, 1.0, 0.0], [100, 100, 100], 0.5).tolist()
      [0.38, 0.52, 0.6]

    Reference:
      Sung et al., ECoFLaP: efficient coarse-to-fine layer-wise pruning for vision-language models,
      arXiv:2310.02998.
    """
    goal = as_sparsity("sparsity", sparsity)
    most = min(round(goal + 0.1, 1), 1.0) if max_sparsity is None else float(max_sparsity)
    number = np.float32 if published else np.float64
    left, size = np.array(scores, number), np.array(sizes, np.int64)
    _check_blocks(left, size)
    if not goal <= most <= 1.0:
        raise ValueError(
            f"max_sparsity must be in [sparsity={goal}, 1], got {most}. It is the most that any "
            "block is pruned."
        )
    budget = int(int(size.sum()) * (1.0 - goal))
    floor = size.astype(number) * number(1.0 - most)
    # 1 − 0.6 is a little more than 0.4 in float64, and would round up to one weight too many.
    least = np.ceil(floor if published else floor - 1e-9 * size).astype(np.int64)
    keep = least.copy()
    while keep.sum() < budget:
        keep = _handed_out(keep, left, size, budget)
        over = int(keep.sum()) - budget
        if over > 0 and published:
            keep = _taken_back(keep, floor.astype(np.int64), over, sign=1)
        elif over > 0:
            keep = _taken_back(keep, least, over, sign=-1)
    return np.clip(1.0 - keep / size, 0.0, 1.0)


def _check_blocks(scores: np.ndarray, sizes: np.ndarray) -> None:
    if scores.ndim != 1 or not scores.size or scores.shape != sizes.shape:
        raise ValueError(
            f"scores and sizes must be one number for each block, got shapes {scores.shape} and "
            f"{sizes.shape}."
        )
    if not (np.isfinite(scores) & (scores >= 0)).all() or (sizes < 1).any():
        raise ValueError(
            f"scores must be finite and not negative, and sizes 1 or more, got scores "
            f"{scores.tolist()} and sizes {sizes.tolist()}."
        )


def _handed_out(keep: np.ndarray, left: np.ndarray, size: np.ndarray, budget: int) -> np.ndarray:
    """Hand out what is missing in proportion to the scores; those of full blocks become 0."""
    left[keep >= size] = 0
    open_ = keep < size
    share = left if left.sum() > 0 else np.where(open_, size, 0).astype(left.dtype)
    missing = left.dtype.type(budget - int(keep.sum()))
    return np.minimum(keep + np.ceil(share / share.sum() * missing).astype(np.int64), size)


def _taken_back(keep: np.ndarray, least: np.ndarray, over: int, *, sign: int) -> np.ndarray:
    """Take ``over`` weights from the blocks that keep most, none below ``least``."""
    keep = keep.copy()
    while over > 0:
        for block in np.argsort(-keep, kind="stable"):
            part = min(over, int(keep[block] - least[block]))
            keep[block] += sign * part
            over -= part
            if over == 0:
                break
    return keep
