"""Scores of one matrix from its weights and the sums over its calibration inputs."""

import jax
import jax.numpy as jnp


def wanda(weight: jax.Array, squares: jax.Array) -> jax.Array:
    """Score a weight by its size times the norm of its input (Wanda).

    ``score_ij = |W_ij| · √s_i``, with s the sum of x² of each input. Scores are compared within an
    output, so that a common factor of s, such as the number of sequences, does not matter.

    Args:
      weight: (in, out).
      squares: (in,), sum or mean of x² over the calibration inputs.

    Returns:
      Scores (in, out) in float32. Higher = kept.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import scores
      >>> scores.wanda(jnp.array([[1.0, -2.0], [3.0, 1.0]]), jnp.array([9.0, 1.0]))
      Array([[3., 6.],
             [3., 1.]], dtype=float32)

    Reference:
      Sun et al., A simple and effective pruning approach for large language models,
      arXiv:2306.11695.
    """
    return _size(weight) * jnp.sqrt(squares.astype(jnp.float32))[:, None]


def ria(weight: jax.Array, squares: jax.Array, *, power: float = 0.5) -> jax.Array:
    """Score a weight by its share of its input's and of its output's weights (RIA).

    ``score_ij = (|W_ij| / Σ_j |W_ij| + |W_ij| / Σ_i |W_ij|) · (√s_i)^power``. An input or output
    without weights adds 0, where the published code divides 0 by 0.

    Args:
      weight: (in, out).
      squares: (in,), sum or mean of x² over the calibration inputs; a common factor does not
        matter.
      power: how much the inputs count; 0 leaves them out.

    Returns:
      Scores (in, out) in float32. Higher = kept.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import scores
      >>> scores.ria(jnp.array([[1.0, -3.0], [3.0, 1.0]]), jnp.array([16.0, 1.0]))
      Array([[1. , 3. ],
             [1.5, 0.5]], dtype=float32)

    Reference:
      Zhang et al., Plug-and-play: an efficient post-training pruning method for large language
      models, ICLR 2024.
    """
    size = _size(weight)
    relative = _share(size, axis=1) + _share(size, axis=0)
    return relative * (jnp.sqrt(squares.astype(jnp.float32)) ** power)[:, None]


def gblm(
    weight: jax.Array, squares: jax.Array | None, gradient: jax.Array, *, inverse: bool = False
) -> jax.Array:
    """Score a weight by its size, its input and its gradient (GBLM-Pruner).

    ``score_ij = |W_ij| · (√s_i + G_ij)``. The balance of the two depends on their scales: s is the
    sum of x² divided by the number of sequences, and G is that of `gradient_norm`.

    Args:
      weight: (in, out).
      squares: (in,), sum of x² over the calibration inputs divided by the number of sequences.
        None scores by the gradient alone, ``|W_ij| · G_ij``.
      gradient: (in, out), size of the loss's gradient over the calibration sequences.
      inverse: divide by the gradient instead, ``|W_ij| · √s_i / (G_ij + 1e-8)``, or
        ``|W_ij| / (G_ij + 1e-8)`` without squares. An ablation of the published code.

    Returns:
      Scores (in, out) in float32. Higher = kept.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import scores
      >>> weight, squares = jnp.array([[1.0, -2.0]]), jnp.array([9.0])
      >>> gradient = jnp.array([[4.0, 0.5]])
      >>> scores.gblm(weight, squares, gradient)
      Array([[7., 7.]], dtype=float32)
      >>> scores.gblm(weight, None, gradient)
      Array([[4., 1.]], dtype=float32)
      >>> scores.gblm(weight, squares, gradient, inverse=True)
      Array([[ 0.75, 12.  ]], dtype=float32)

    Reference:
      Das et al., Beyond size: how gradients shape pruning decisions in large language models,
      arXiv:2311.04902.
    """
    size, slope = _size(weight), jnp.abs(gradient.astype(jnp.float32))
    scores = size if squares is None else wanda(weight, squares)
    if inverse:
        return scores / (slope + 1e-8)
    return size * slope if squares is None else scores + size * slope


def _size(weight: jax.Array) -> jax.Array:
    return jnp.abs(weight.astype(jnp.float32))


def _share(size: jax.Array, *, axis: int) -> jax.Array:
    total = jnp.sum(size, axis=axis, keepdims=True)
    return size / jnp.where(total > 0, total, 1)
