"""RIA: weights by their share of their row and column, and the norm of their input."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxprune.patterns import NM
from jaxprune.posttraining.matrix import Inputs, Pruned, Target
from jaxprune.posttraining.scored import Scored, mean_squares
from jaxprune.posttraining.select import Select, per_matrix
from jaxprune.scores.activation import ria as ria_scores


@dataclasses.dataclass(frozen=True)
class RIA(Scored):
    """RIA on one matrix; see :func:`ria`.

    Attributes:
      power: how much the inputs count.
      permute: whether groups are made of reordered inputs.
    """

    power: float = 0.5
    permute: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of ``Inputs`` that it reads."""
        return ("squares",)

    def scores(self, weight: jax.Array, inputs: Inputs) -> jax.Array:
        """Return the relative importance times the inputs' norms."""
        return ria_scores(weight, mean_squares(inputs), power=self.power)

    def _prune(self, weight: jax.Array, scores: jax.Array, target: Target) -> Pruned:
        if not (self.permute and isinstance(target.pattern, NM)):
            return super()._prune(weight, scores, target)
        order = input_order(scores, target.pattern.m)
        back = jnp.argsort(order)
        pruned = super()._prune(weight[order], scores[order], target)
        return Pruned(pruned.weight[back], pruned.mask[back])


def ria(
    *,
    select: Select = per_matrix,
    keep_last: bool = True,
    power: float = 0.5,
    permute: bool = False,
) -> RIA:
    """Prune by relative importance and activations (RIA).

    `jaxprune.scores.ria` gives the score. The weights that are kept do not change.

    Args:
      select: which weights compete: all of the matrix, exactly; ``below_threshold`` for the rule of
        the published code, which prunes one weight more; ``per_output``.
      keep_last: of equal scores, keep those of higher index.
      power: how much the inputs count; 0 leaves them out.
      permute: with an ``NM`` pattern, spread the important inputs over the groups first. The mask
        is in the weight's own order: it obeys the pattern only after ``weight[order]``, with
        ``order = input_order(scores, m)``, and the inputs must then come in that order.

    Returns:
      The method, ``(weight, inputs, target) -> pruned``. It reads ``inputs.squares``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> weight = jnp.array([[1.0, -3.0], [3.0, 1.0]])
      >>> inputs = posttraining.Inputs(
      ...     jnp.float32(1), jnp.float32(1), squares=jnp.array([16.0, 1.0]))
      >>> posttraining.ria()(weight, inputs, posttraining.Target(0.5)).weight
      Array([[ 0., -3.],
             [ 3.,  0.]], dtype=float32)

    Reference:
      Zhang et al., Plug-and-play: an efficient post-training pruning method for large language
      models, ICLR 2024.
    """
    return RIA(select, keep_last, power, permute)


def input_order(scores: jax.Array, m: int) -> jax.Array:
    """Return an order of the inputs that gives every group of m some important ones.

    Inputs are sorted by the sum of their scores and dealt out like cards: the first in/m become the
    first members of the groups, the next in/m the second members in reverse, and so on. The
    published code can refine this by linear assignment; that is not done here.

    Args:
      scores: (in, out).
      m: members of a group.

    Returns:
      Indices (in,), int32: ``weight[order]`` is the reordered weight.

    Raises:
      ValueError: a number of inputs that is not a multiple of m.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> scores = jnp.array([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
      >>> posttraining.input_order(scores, 2)
      Array([0, 5, 1, 4, 2, 3], dtype=int32)
    """
    inputs = scores.shape[0]
    if inputs % m:
        raise ValueError(
            f"input_order deals {inputs} inputs to groups of {m}, which is not possible: {inputs} "
            f"is not a multiple of {m}. Use permute=False, or another pattern."
        )
    strips = jnp.argsort(jnp.sum(scores, axis=1), stable=True).reshape(m, inputs // m)
    turned = (jnp.arange(m) % 2 == 1)[:, None]
    return jnp.where(turned, strips[:, ::-1], strips).T.reshape(inputs)
