"""How far a model's outputs are from others: functions ``(reference, outputs) -> distance``.

Outputs are logits ``[..., vocabulary]``, or vectors. A distance is a scalar; batches are averaged.
"""

import jax
import jax.numpy as jnp


def reverse_js_divergence(reference: jax.Array, outputs: jax.Array) -> jax.Array:
    """Return ``(KL(M‖P) + KL(M‖Q)) / 2`` with ``M = (P + Q) / 2``, as FinerCut's code has it.

    P and Q are the softmax of the two. The textbook's Jensen–Shannon divergence has M on the right;
    this one weighs what either model all but rules out. The mean is over all elements.

    Args:
      reference: logits ``[..., vocabulary]``.
      outputs: logits of the same shape.

    Returns:
      Scalar, float32; 0 if and only if the two differ by a constant for each token.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> logits = jnp.log(jnp.array([[0.9, 0.1]]))
      >>> round(float(posttraining.reverse_js_divergence(logits, logits[:, ::-1])), 4)
      0.2554

    Reference:
      Zhang et al., FinerCut: finer-grained interpretable layer pruning for large language models,
      arXiv:2405.18218.
    """
    log_p, log_q = _log_softmax(reference), _log_softmax(outputs)
    to_p, to_q = _to_mean(log_p, log_q), _to_mean(log_q, log_p)
    return 0.5 * _expected(log_p + to_p, to_p + to_q)


def js_divergence(reference: jax.Array, outputs: jax.Array) -> jax.Array:
    """Return the Jensen–Shannon divergence ``(KL(P‖M) + KL(Q‖M)) / 2`` with ``M = (P + Q) / 2``.

    The mean is over all elements, not the sum over the vocabulary.

    Args:
      reference: logits ``[..., vocabulary]``.
      outputs: logits of the same shape.

    Returns:
      Scalar, float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> logits = jnp.log(jnp.array([[0.9, 0.1]]))
      >>> round(float(posttraining.js_divergence(logits, logits[:, ::-1])), 4)
      0.184

    Reference:
      Zhang et al., FinerCut: finer-grained interpretable layer pruning for large language models,
      arXiv:2405.18218.
    """
    log_p, log_q = _log_softmax(reference), _log_softmax(outputs)
    to_p, to_q = _to_mean(log_p, log_q), _to_mean(log_q, log_p)
    return -0.5 * (_expected(log_p, to_p) + _expected(log_q, to_q))


def kl_divergence(reference: jax.Array, outputs: jax.Array) -> jax.Array:
    """Return ``KL(P‖Q)`` of the reference's softmax P and the other's Q, the mean over elements.

    Args:
      reference: logits ``[..., vocabulary]``.
      outputs: logits of the same shape.

    Returns:
      Scalar, float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> logits = jnp.log(jnp.array([[0.9, 0.1]]))
      >>> round(float(posttraining.kl_divergence(logits, logits[:, ::-1])), 4)
      0.8789
    """
    log_p, log_q = _log_softmax(reference), _log_softmax(outputs)
    return _expected(log_p, log_p - log_q)


def angular_distance(reference: jax.Array, outputs: jax.Array) -> jax.Array:
    """Return the angle between two vectors in radians, the mean over tokens.

    ``arccos(min(max(cos, 0), 1))``: vectors that point apart count as orthogonal, as in FinerCut's
    code.

    Args:
      reference: vectors ``[..., features]``.
      outputs: vectors of the same shape.

    Returns:
      Scalar in [0, π/2], float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> ones = jnp.array([[1.0, 1.0], [1.0, 1.0]])
      >>> other = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
      >>> round(float(posttraining.angular_distance(ones, other)), 4)  # π/4 and π/2
      1.1781

    Reference:
      Zhang et al., FinerCut: finer-grained interpretable layer pruning for large language models,
      arXiv:2405.18218.
    """
    a, b = reference.astype(jnp.float32), outputs.astype(jnp.float32)
    size = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    cosine = jnp.sum(a * b, axis=-1) / jnp.maximum(size, jnp.finfo(jnp.float32).tiny)
    return jnp.mean(jnp.arccos(jnp.clip(cosine, 0.0, 1.0)))


def euclidean_distance(reference: jax.Array, outputs: jax.Array) -> jax.Array:
    """Return the norm of the difference over a whole sequence, the mean over sequences.

    Args:
      reference: ``[sequences, ...]``.
      outputs: of the same shape.

    Returns:
      Scalar, float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> apart = jnp.array([[[3.0], [4.0]], [[0.0], [1.0]]])
      >>> float(posttraining.euclidean_distance(jnp.zeros((2, 2, 1)), apart))
      3.0
    """
    square = jnp.square(reference.astype(jnp.float32) - outputs.astype(jnp.float32))
    return jnp.mean(jnp.sqrt(jnp.sum(square, axis=tuple(range(1, square.ndim)))))


def _log_softmax(logits: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)


def _to_mean(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Return ``log((p + q) / 2) − log p``, which is exactly 0 where the two are equal."""
    apart = jnp.where(log_p == log_q, 0.0, log_q - log_p)
    return jnp.maximum(apart, 0.0) + jnp.log1p(0.5 * jnp.expm1(-jnp.abs(apart)))


def _expected(log_p: jax.Array, values: jax.Array) -> jax.Array:
    """Return the mean of ``p · values``; what has probability 0 adds nothing."""
    p = jnp.exp(log_p)
    return jnp.mean(jnp.where(p == 0, 0.0, p * values))
