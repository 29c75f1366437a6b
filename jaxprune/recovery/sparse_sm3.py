"""SM3 on the entries of a sparse delta: a number for each row and column (SFT-MA)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune._core.stacks import over_layers
from jaxprune.recovery.deltas import SparseDelta, at_entries, largest
from jaxprune.recovery.moving import move


class SM3Moments(NamedTuple):
    """Bounds of the summed squared gradients of a weight's rows and columns.

    Attributes:
      rows: float32 ``(*lead, in)``.
      columns: float32 ``(*lead, out)``.
    """

    rows: jax.Array
    columns: jax.Array


@dataclasses.dataclass(frozen=True)
class SparseSM3:
    """Train the entries of a sparse delta and move them by SM3's bounds; `sft_ma` does so.

    Attributes:
      eps: added to the bound under the root.
    """

    eps: float = 1e-8

    def init(self, delta: SparseDelta) -> SM3Moments:
        """Return bounds before the first gradient: zeros."""
        *lead, inputs, outputs = delta.matrices
        return SM3Moments(
            jnp.zeros((*lead, inputs), jnp.float32), jnp.zeros((*lead, outputs), jnp.float32)
        )

    def step(
        self, delta: SparseDelta, moments: SM3Moments, gradient: jax.Array, rate: Any
    ) -> tuple[SparseDelta, SM3Moments]:
        """Take one step; ``gradient`` is dense, ``(*lead, in, out)``."""
        here = at_entries(delta, gradient)

        def bounds(indices: jax.Array, old: SM3Moments, here: jax.Array) -> Any:
            row, column = jnp.divmod(indices, jnp.int32(old.columns.size))
            bound = jnp.minimum(old.rows[row], old.columns[column]) + here * here
            new = old.rows.at[row].max(bound), old.columns.at[column].max(bound)
            return bound, SM3Moments(*new)

        bound, moments = over_layers(bounds, len(delta.layout.lead))(delta.indices, moments, here)
        values = delta.values - rate * here / jnp.sqrt(bound + self.eps)
        return dataclasses.replace(delta, values=values), moments

    def move(
        self,
        delta: SparseDelta,
        moments: SM3Moments,
        count: Any,
        *,
        allowed: jax.Array | None = None,
    ) -> SparseDelta:
        """Move the entries of smallest value to where row times column is largest.

        Args:
          delta: to be changed.
          moments: bounds of its rows and columns; they stay.
          count: how many entries are dropped of each matrix; may be traced.
          allowed: bool ``(*lead, in, out)``, where entries may grow; None for everywhere.

        Returns:
          The delta, with value 0 for grown entries.
        """

        def one(delta: SparseDelta, moments: SM3Moments, *rest: jax.Array) -> SparseDelta:
            scores = _scores(delta.indices, moments, *rest)
            grown = largest(scores, delta.indices.size)
            score = scores.ravel()[grown]
            step = move(delta.indices, delta.values, grown, score, score >= 0.0, count)
            return dataclasses.replace(
                delta,
                indices=step.placed(delta.indices, grown),
                values=step.placed(delta.values, jnp.zeros_like(delta.values)),
            )

        rest = () if allowed is None else (allowed,)
        return over_layers(one, len(delta.layout.lead))(delta, moments, *rest)


def _scores(indices: jax.Array, moments: SM3Moments, allowed: jax.Array | None = None) -> jax.Array:
    """Return the product of the bounds, which are not negative, and −1 where nothing may grow."""
    scores = moments.rows[:, None] * moments.columns[None, :]
    row, column = jnp.divmod(indices, jnp.int32(moments.columns.size))
    taken = jnp.zeros(scores.shape, bool).at[row, column].set(True)
    if allowed is not None:
        taken |= ~allowed
    return jnp.where(taken, jnp.full_like(scores, -1.0), scores)
