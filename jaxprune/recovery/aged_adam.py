"""AdamW on the entries of a sparse delta, each with an age of its own (SFT-AG)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune._core.stacks import over_layers
from jaxprune.recovery.deltas import SparseDelta, at_entries, largest
from jaxprune.recovery.moving import Move, move


class AgedMoments(NamedTuple):
    """Adam's moments of the entries of a delta.

    Attributes:
      mean: of the gradient, float32 ``(*lead, k)``.
      square: of its square, float32 ``(*lead, k)``.
      age: steps that the next one corrects the moments for, float32 ``(*lead, k)``, from 1.
    """

    mean: jax.Array
    square: jax.Array
    age: jax.Array


class Candidates(NamedTuple):
    """Entries that may be grown, and the gradients that were seen there.

    Attributes:
      indices: int32 ``(*lead, k)``, of the largest gradients of the first batch.
      total: sum of the gradients, float32 ``(*lead, k)``.
      squares: sum of their squares, float32 ``(*lead, k)``.
      seen: how many gradients were summed, float32 ``(*lead, k)``.
    """

    indices: jax.Array
    total: jax.Array
    squares: jax.Array
    seen: jax.Array


@dataclasses.dataclass(frozen=True)
class AgedAdam:
    """Train the entries of a sparse delta and move them by their gradients; `sft_ag` does so.

    Attributes:
      b1: decay of the mean of gradients.
      b2: decay of the mean of squares.
      eps: added to the root of the mean of squares, inside the correction for the age.
      weight_decay: of the values, decoupled.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.0

    def init(self, delta: SparseDelta) -> AgedMoments:
        """Return moments of entries that have seen no gradient."""
        # Each an array of its own, so that all can be donated.
        values = delta.values
        return AgedMoments(jnp.zeros_like(values), jnp.zeros_like(values), jnp.ones_like(values))

    def step(
        self, delta: SparseDelta, moments: AgedMoments, gradient: jax.Array, rate: Any
    ) -> tuple[SparseDelta, AgedMoments]:
        """Take one step; ``gradient`` is dense, ``(*lead, in, out)``."""
        here = at_entries(delta, gradient)
        mean = self.b1 * moments.mean + (1.0 - self.b1) * here
        square = self.b2 * moments.square + (1.0 - self.b2) * here * here
        bias = (1.0 - self.b1**moments.age) / jnp.sqrt(1.0 - self.b2**moments.age)
        values = delta.values * (1.0 - rate * self.weight_decay)
        values = values - rate * mean / ((jnp.sqrt(square) + self.eps) * bias)
        after = AgedMoments(mean, square, moments.age + 1.0)
        return dataclasses.replace(delta, values=values), after

    def no_candidates(self, delta: SparseDelta) -> Candidates:
        """Return candidates before the first gradient."""
        return _unobserved(jnp.zeros_like(delta.indices), delta.values)

    def candidates(
        self, delta: SparseDelta, gradient: jax.Array, *, allowed: jax.Array | None = None
    ) -> Candidates:
        """Return the entries of the largest gradients, as many as the delta has, unobserved.

        Args:
          delta: whose entries may move there.
          gradient: dense, ``(*lead, in, out)``.
          allowed: bool ``(*lead, in, out)``, where entries may grow; None for everywhere.
        """
        scores = jnp.abs(gradient)
        if allowed is not None:
            scores = jnp.where(allowed, scores, jnp.full_like(scores, -1.0))

        def choose(one: jax.Array) -> jax.Array:
            return largest(one, delta.values.shape[-1])

        return _unobserved(over_layers(choose, len(delta.layout.lead))(scores), delta.values)

    def observe(
        self, delta: SparseDelta, candidates: Candidates, gradient: jax.Array
    ) -> Candidates:
        """Add a gradient to what was seen of the candidates."""
        here = at_entries(dataclasses.replace(delta, indices=candidates.indices), gradient)
        return Candidates(
            candidates.indices,
            candidates.total + here,
            candidates.squares + here * here,
            candidates.seen + 1.0,
        )

    def move(
        self,
        delta: SparseDelta,
        moments: AgedMoments,
        candidates: Candidates,
        count: Any,
        *,
        allowed: jax.Array | None = None,
        gradients_per_step: int = 1,
    ) -> tuple[SparseDelta, AgedMoments]:
        """Move the entries of smallest value to the candidates of largest summed gradient.

        Args:
          delta: to be changed.
          moments: of its entries.
          candidates: that were observed.
          count: how many entries are dropped of each matrix; may be traced.
          allowed: bool ``(*lead, in, out)``, where entries may grow; None for everywhere.
          gradients_per_step: how many of the observed gradients make one step's.

        Returns:
          The delta, with value 0 for grown entries, and the moments, which for these are of what
          was observed. Entries that are dropped and grown at once are left alone.
        """

        def one(
            delta: SparseDelta, moments: AgedMoments, candidates: Candidates, *rest: jax.Array
        ) -> tuple[SparseDelta, AgedMoments]:
            step = _step(delta, candidates, count, *rest)
            new = self._seeded(candidates, gradients_per_step)
            moved = dataclasses.replace(
                delta,
                indices=step.placed(delta.indices, candidates.indices),
                values=step.placed(delta.values, jnp.zeros_like(delta.values)),
            )
            return moved, AgedMoments(*map(step.placed, moments, new))

        rest = () if allowed is None else (allowed,)
        return over_layers(one, len(delta.layout.lead))(delta, moments, candidates, *rest)

    def _seeded(self, candidates: Candidates, gradients_per_step: int) -> AgedMoments:
        """Return moments as if the gradients that were seen had all been the mean one."""
        count = jnp.maximum(candidates.seen, 1.0)
        age = count / gradients_per_step
        mean = candidates.total / count * (1.0 - self.b1**age)
        square = candidates.squares / count * (1.0 - self.b2**age)
        return AgedMoments(mean, square, age)


def _unobserved(indices: jax.Array, values: jax.Array) -> Candidates:
    return Candidates(
        indices, jnp.zeros_like(values), jnp.zeros_like(values), jnp.zeros_like(values)
    )


def _step(
    delta: SparseDelta, candidates: Candidates, count: Any, allowed: jax.Array | None = None
) -> Move:
    found = candidates.indices
    may = jnp.ones(found.shape, bool) if allowed is None else allowed.ravel()[found]
    return move(delta.indices, delta.values, found, jnp.abs(candidates.total), may, count)
