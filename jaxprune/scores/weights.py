"""Scores that read the weights alone."""

import jax.numpy as jnp

from jaxprune.scores import _leaves
from jaxprune.types import Tree


def magnitude(params: Tree, grads: Tree = None) -> Tree:
    """Score a weight by its absolute value.

    ``score = |w|``, in the weight's own dtype.

    Args:
      params: tree of weights; ``None`` and ``optax.MaskedNode()`` pass through.
      grads: ignored; every score is called with ``(params, grads)``.

    Returns:
      The tree of scores, with the structure, shapes and dtypes of ``params``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import scores
      >>> scores.magnitude({"kernel": jnp.array([[-3.0, 0.5], [0.0, 2.0]])})["kernel"]
      Array([[3. , 0.5],
             [0. , 2. ]], dtype=float32)

    Reference:
      Han et al., Learning both weights and connections, arXiv:1506.02626.
    """
    del grads
    return _leaves.map_with_path(lambda path, weight: jnp.abs(weight), params)
