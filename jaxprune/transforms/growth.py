"""Growth rules: which pruned weights come back? A rule scores them; higher = grown."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxprune import scores
from jaxprune.transforms.recipe import Leaves, Moment

Growth: TypeAlias = Callable[[Moment, jax.Array], Leaves]
"""``(moment, key) -> {path: scores}``: finite scores of the weights' shapes."""


def gradient(moment: Moment, key: jax.Array) -> Leaves:
    """Grow where the dense gradient is largest: ``|g|``, as RigL does.

    Args:
      moment: the present weights, masks and dense gradients.
      key: unused.

    Returns:
      ``{path: scores}``.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> tx = jaxprune.dynamic(
      ...     optax.sgd(0.1), 0.5, every=1, end=3, drop=0.5, growth=jaxprune.growth.gradient
      ... )
      >>> params = {"kernel": jnp.array([[4.0, 3.0, 2.0, 1.0]])}
      >>> opt_state = tx.init(params)
      >>> opt_state.masks["kernel"].sum().item()
      2

    Reference:
      Evci et al., Rigging the lottery, arXiv:1911.11134.
    """
    del key
    return {path: jnp.abs(moment.grads[path]) for path in moment.masks}


def random(moment: Moment, key: jax.Array) -> Leaves:
    """Grow at random, as SET does.

    Args:
      moment: the present weights and masks.
      key: a key of the update; each weight's numbers depend on it and the weight's path.

    Returns:
      ``{path: scores}`` in [0, 1).

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> tx = jaxprune.dynamic(
      ...     optax.sgd(0.1), 0.5, every=1, end=3, growth=jaxprune.growth.random
      ... )
      >>> tx.init({"kernel": jnp.ones((4, 4))}).masks["kernel"].sum().item()
      8

    Reference:
      Mocanu et al., Scalable training of artificial neural networks with adaptive sparse
      connectivity inspired by network science, arXiv:1707.04780.
    """
    return scores.random(moment.weights, key)
