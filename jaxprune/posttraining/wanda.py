"""Wanda: weights by their size times the norm of their input."""

import dataclasses

import jax

from jaxprune.posttraining.matrix import Inputs
from jaxprune.posttraining.scored import Scored, mean_squares
from jaxprune.posttraining.select import Select, per_output
from jaxprune.scores.activation import wanda as wanda_scores


@dataclasses.dataclass(frozen=True)
class Wanda(Scored):
    """Wanda on one matrix; see :func:`wanda`."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of ``Inputs`` that it reads."""
        return ("squares",)

    def scores(self, weight: jax.Array, inputs: Inputs) -> jax.Array:
        """Return ``|W| · √s``."""
        return wanda_scores(weight, mean_squares(inputs))


def wanda(*, select: Select = per_output, keep_last: bool = True) -> Wanda:
    """Prune by the size of a weight times the norm of its input (Wanda).

    Weights compete within an output, ``⌊in · sparsity⌋`` of each are pruned, and the others do not
    change. `jaxprune.scores.wanda` gives the score.

    Args:
      select: which weights compete. ``cumulative`` is the published variant in which outputs keep
        different numbers; ``per_matrix`` is what the authors use for image classifiers.
      keep_last: of equal scores, keep those of higher index, as the published code does.

    Returns:
      The method, ``(weight, inputs, target) -> pruned``. It reads ``inputs.squares``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> weight = jnp.array([[3.0, -1.0], [2.0, 2.0]])
      >>> inputs = posttraining.Inputs(
      ...     jnp.float32(1), jnp.float32(1), squares=jnp.array([1.0, 100.0]))
      >>> posttraining.wanda()(weight, inputs, posttraining.Target(0.5)).weight
      Array([[0., 0.],
             [2., 2.]], dtype=float32)

    Reference:
      Sun et al., A simple and effective pruning approach for large language models,
      arXiv:2306.11695.
    """
    return Wanda(select, keep_last)
