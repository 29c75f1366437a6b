"""Magnitude: the smallest weights go, whatever their inputs."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxprune.posttraining.matrix import Inputs
from jaxprune.posttraining.scored import Scored
from jaxprune.posttraining.select import Select, per_matrix


@dataclasses.dataclass(frozen=True)
class Magnitude(Scored):
    """Magnitude pruning of one matrix; see :func:`magnitude`."""

    def scores(self, weight: jax.Array, inputs: Inputs) -> jax.Array:
        """Return ``|W|``."""
        del inputs
        return jnp.abs(weight.astype(jnp.float32))


def magnitude(*, select: Select = per_matrix, keep_last: bool = True) -> Magnitude:
    """Prune the smallest weights of each matrix; no calibration.

    To rank the weights of all matrices together use ``jaxprune.prune`` with
    ``allocation=jaxprune.allocation.global_()``.

    Args:
      select: which weights compete: all of the matrix, exactly; ``below_threshold`` for the rule of
        the published codes, which prunes one weight more and all ties; ``per_output``.
      keep_last: of equal weights, keep those of higher index. Quantised weights tie often: the rule
        alone changes what 2:4 does to a model.

    Returns:
      The method, ``(weight, inputs, target) -> pruned``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> weight = jnp.array([[3.0, -1.0], [0.5, 2.0]])
      >>> inputs = posttraining.Inputs(jnp.float32(1), jnp.float32(1))
      >>> posttraining.magnitude()(weight, inputs, posttraining.Target(0.5)).weight
      Array([[3., 0.],
             [0., 2.]], dtype=float32)

    Reference:
      Han et al., Learning both weights and connections, arXiv:1506.02626.
    """
    return Magnitude(select, keep_last)
