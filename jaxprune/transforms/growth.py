"""Growth rules: which pruned weights come back? A rule scores them; higher = grown."""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune import scores
from jaxprune._core.checks import debug_check
from jaxprune.transforms.recipe import Leaves, Moment, everything

Growth: TypeAlias = Callable[[Moment, jax.Array], Leaves]
"""``(moment, key) -> {path: scores}``: finite scores of the weights' shapes."""


def gradient(moment: Moment, key: jax.Array) -> Leaves:
    """Grow where the dense gradient is largest: ``|g|``, as RigL does.

    Args:
      moment: the present weights, masks and dense gradients.
      key: unused.

    Returns:
      ``{path: scores}``.

    Raises:
      ValueError: no pruned weight of the model has a gradient (outside jit; inside through
        ``checkify``, with `jaxprune.debug_checks`).

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
    _refuse_masked(moment)
    return {path: jnp.abs(moment.grads[path]) for path in moment.masks}


def _refuse_masked(moment: Moment) -> None:
    """Raise if live weights have gradients and pruned ones have none: then someone masked them."""
    nowhere = jnp.bool_(False)
    live, pruned = nowhere, nowhere
    for path, mask in moment.masks.items():
        found = moment.grads[path] != 0
        live, pruned = live | jnp.any(found & mask), pruned | jnp.any(found & ~mask)
    masked = live & ~pruned & _some_pruned(moment)
    text = (
        "growth.gradient needs dense gradients, and every pruned weight has a gradient of exactly "
        "zero. Pass the gradients of the loss as they are, without masks, or use growth.random."
    )
    if not isinstance(masked, Tracer):
        if bool(masked):
            raise ValueError(text)
    else:
        debug_check(~masked, text)


def _some_pruned(moment: Moment) -> jax.Array:
    flags = [jnp.any(~mask) for mask in moment.masks.values()]
    return jnp.any(jnp.stack(flags)) if flags else jnp.bool_(False)


@dataclasses.dataclass(frozen=True)
class Momentum:
    """A growth rule with a memory of its own: see `momentum`."""

    decay: float

    def start(self, weights: Leaves) -> Leaves:
        """Return the momentum before the first call."""
        # Zeros that are read from the weights, so that they are split over devices as these are.
        return {path: (~everything(w)).astype(jnp.float32) for path, w in weights.items()}

    def watch(self, before: Leaves, grads: Leaves) -> Leaves:
        """Return the momentum after one more dense gradient."""
        decay = jnp.float32(self.decay)
        return {path: decay * m + grads[path].astype(jnp.float32) for path, m in before.items()}

    def __call__(self, moment: Moment, key: jax.Array) -> Leaves:
        """Return the magnitudes of the momentum."""
        del key
        return {path: jnp.abs(leaf) for path, leaf in moment.extra.momentum.items()}


def momentum(decay: float = 0.9) -> Momentum:
    """Grow where the momentum of the dense gradients is largest, as SNFS does.

    ``m ← decay · m + g`` in every call, of all prunable weights; ``|m|`` is the score.

    Args:
      decay: share of the momentum that a call keeps, in [0, 1).

    Returns:
      A growth rule. It adds a float32 number a weight to the state.

    Raises:
      ValueError: a decay outside [0, 1).

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> tx = jaxprune.dynamic(
      ...     optax.sgd(0.1), 0.5, every=1, end=3, growth=jaxprune.growth.momentum(0.5)
      ... )
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> opt_state = tx.init(params)
      >>> for _ in range(2):
      ...     _, opt_state = tx.update(params, opt_state, params)
      >>> opt_state.extra.momentum.tree["kernel"].ravel().tolist()
      [1.5, 1.5, 1.5, 1.5]

    Reference:
      Dettmers and Zettlemoyer, Sparse networks from scratch, arXiv:1907.04840.
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(
            f"decay must be in [0, 1), got {decay}. It is the share of the momentum that a call "
            "keeps; 0.9 is usual."
        )
    return Momentum(float(decay))


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
