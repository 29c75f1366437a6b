"""GBLM-Pruner: Wanda's score plus the gradient of the loss."""

import dataclasses

import jax

from jaxprune.posttraining.matrix import Inputs
from jaxprune.posttraining.scored import Scored, mean_squares
from jaxprune.posttraining.select import Select, per_output
from jaxprune.scores.activation import gblm as gblm_scores


@dataclasses.dataclass(frozen=True)
class GBLM(Scored):
    """GBLM-Pruner on one matrix; see :func:`gblm`.

    Attributes:
      inverse: whether the score is divided by the gradient.
      gradient_only: whether the inputs are left out.
    """

    inverse: bool = False
    gradient_only: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of ``Inputs`` that it reads."""
        return ("gradient",) if self.gradient_only else ("squares", "gradient")

    def scores(self, weight: jax.Array, inputs: Inputs) -> jax.Array:
        """Return ``|W| · (√s + G)``, or the variant that was asked for."""
        assert inputs.gradient is not None
        squares = None if self.gradient_only else mean_squares(inputs)
        return gblm_scores(weight, squares, inputs.gradient, inverse=self.inverse)


def gblm(
    *,
    select: Select = per_output,
    keep_last: bool = True,
    inverse: bool = False,
    gradient_only: bool = False,
) -> GBLM:
    """Prune by the size of a weight, its input and its gradient (GBLM-Pruner).

    `jaxprune.scores.gblm` gives the score. ``inputs.gradient`` is of the dense model, from
    `jaxprune.scores.gradient_norm`; the inputs are those of the model as far as it is pruned.

    Args:
      select: which weights compete, as in `wanda`.
      keep_last: of equal scores, keep those of higher index, as the published code does.
      inverse: divide by the gradient instead of adding it; an ablation.
      gradient_only: leave the inputs out; an ablation.

    Returns:
      The method, ``(weight, inputs, target) -> pruned``. It reads ``inputs.squares`` and
      ``inputs.gradient``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> weight = jnp.array([[3.0, -1.0], [2.0, 2.0]])
      >>> inputs = posttraining.Inputs(
      ...     jnp.float32(1), jnp.float32(1), squares=jnp.array([1.0, 1.0]),
      ...     gradient=jnp.array([[0.0, 0.0], [9.0, 0.0]]))
      >>> posttraining.gblm()(weight, inputs, posttraining.Target(0.5)).weight
      Array([[0., 0.],
             [2., 2.]], dtype=float32)

    Reference:
      Das et al., Beyond size: how gradients shape pruning decisions in large language models,
      arXiv:2311.04902.
    """
    return GBLM(select, keep_last, inverse, gradient_only)
