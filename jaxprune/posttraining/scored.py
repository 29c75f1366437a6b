"""What the methods share that score weights, keep the best and leave their values alone."""

import abc
import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxprune.posttraining.matrix import Inputs, Pruned, Target
from jaxprune.posttraining.select import Select, prune_by

_MEANS = {
    "squares": "the sum of x² of each input",
    "gradient": "the norm of the loss's gradients, as scores.gradient_norm gives it",
}


@dataclasses.dataclass(frozen=True)
class Scored(abc.ABC):
    """A method that scores weights, keeps the best and leaves their values alone.

    Attributes:
      select: which weights compete, without an ``NM`` pattern.
      keep_last: of equal scores, keep those of higher index.
    """

    select: Select
    keep_last: bool = True

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of ``Inputs`` that it reads."""
        return ()

    @abc.abstractmethod
    def scores(self, weight: jax.Array, inputs: Inputs) -> jax.Array:
        """Return the scores (in, out), float32."""

    def __call__(self, weight: jax.Array, inputs: Inputs, target: Target) -> Pruned:
        """Return the pruned weight, in its own dtype, and its mask."""
        self._check(weight, inputs)
        return self._prune(weight, self.scores(weight, inputs), target)

    def _prune(self, weight: jax.Array, scores: jax.Array, target: Target) -> Pruned:
        return prune_by(weight, scores, target, select=self.select, keep_last=self.keep_last)

    def _means(self) -> Mapping[str, str]:
        """Return what the fields of ``Inputs`` hold, for messages."""
        return _MEANS

    def _check(self, weight: jax.Array, inputs: Inputs) -> None:
        name = type(self).__name__
        if weight.ndim != 2:
            raise ValueError(
                f"{name} prunes one matrix (in, out), got a weight of shape {weight.shape}. "
                "Flatten what it contracts to one axis, and jax.vmap over stacked layers."
            )
        means = self._means()
        shapes = {"squares": weight.shape[:1], "gradient": weight.shape}
        for field in self.needs:
            value = getattr(inputs, field)
            if value is None:
                raise ValueError(f"{name} needs inputs.{field}, got None. It is {means[field]}.")
            if value.shape != shapes[field]:
                raise ValueError(
                    f"inputs.{field} has shape {value.shape}; a weight of shape {weight.shape} "
                    f"needs {shapes[field]}: {means[field]}."
                )


def mean_squares(inputs: Inputs) -> jax.Array:
    """Return the sum of x² of each input, divided by the number of sequences: (in,) float32."""
    assert inputs.squares is not None
    count = jnp.maximum(jnp.asarray(inputs.sequences).astype(jnp.float32), 1.0)
    return inputs.squares.astype(jnp.float32) / count
