"""Scores that read nothing: the baseline that a pruning method has to beat."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.scores import _leaves
from jaxprune.types import Tree


def random(params: Tree, key: jax.Array) -> Tree:
    """Score every weight by chance.

    ``score ~ U[0, 1)`` in float32. The numbers of a leaf depend on ``key``, its path and its shape
    only: another layer in the model leaves them as they are, and so does another sharding.

    Args:
      params: tree of weights; ``None`` and ``optax.MaskedNode()`` pass through.
      key: a key from ``jax.random.key``. A score takes ``(params, grads)``: pass
        ``score=lambda params, grads: jaxprune.scores.random(params, key)``.

    Returns:
      The tree of scores, float32, with the structure and shapes of ``params``.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxprune import scores
      >>> params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros((2, 2))}
      >>> drawn = scores.random(params, jax.random.key(0))
      >>> bool((drawn["a"] == drawn["b"]).any())
      False
      >>> alone = scores.random({"b": params["b"]}, jax.random.key(0))
      >>> bool((alone["b"] == drawn["b"]).all())
      True

    Reference:
      Liu et al., The unreasonable effectiveness of random pruning, arXiv:2202.02643.
    """
    return _leaves.map_with_path(lambda path, weight: _draw(_key_of(path, key), weight), params)


def _key_of(path: str, key: jax.Array) -> jax.Array:
    """Return the key of a path; two words of its hash, so that no two paths share a key."""
    digest = hashlib.blake2b(path.encode(), digest_size=8).digest()
    for word in np.frombuffer(digest, "<u4"):
        key = jax.random.fold_in(key, word)
    return key


def _draw(key: jax.Array, weight: jax.Array) -> jax.Array:
    """Draw where the weight lives, instead of all numbers on every device."""
    sharding = jax.typeof(weight).sharding
    explicit = sharding if any(sharding.spec) else None
    drawn = jax.random.uniform(key, jnp.shape(weight), jnp.float32, out_sharding=explicit)
    # Automatic axes: a condition on the weight that no compiler folds away passes its sharding on.
    return jnp.where((weight == weight) | (weight != weight), drawn, np.float32(0.0))
