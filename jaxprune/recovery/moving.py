"""Drop and grow entries of a sparse delta in their slots, so that what they remember follows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Move(NamedTuple):
    """Which slots take over which candidates, pair by pair; the rest of the slots is k."""

    slots: jax.Array  # int32 (k,), of the delta
    sources: jax.Array  # int32 (k,), of the candidates

    def placed(self, old: jax.Array, new: jax.Array) -> jax.Array:
        """Return ``old`` (k,) with the values that ``new`` has for the grown entries."""
        return old.at[self.slots].set(new[self.sources], mode="drop")


def move(
    indices: jax.Array,
    values: jax.Array,
    candidates: jax.Array,
    scores: jax.Array,
    allowed: jax.Array,
    count: Any,
) -> Move:
    """Pair the entries that are dropped with those that are grown.

    Args:
      indices: int32 (k,), of the present entries.
      values: float32 (k,), of the present entries; the smallest are dropped.
      candidates: int32 (k,), entries that may be grown.
      scores: float32 (k,), of the candidates; the highest are grown.
      allowed: bool (k,), whether a candidate may be grown at all.
      count: how many are dropped and, if there are as many candidates, grown.

    Returns:
      The pairs: the smallest value gives way to the highest score, and so on. An entry that is
      dropped and grown at once is left alone.
    """
    among = jnp.arange(indices.size) < count  # the first of an order
    drops = jnp.argsort(jnp.abs(values), stable=True)
    dropped = jnp.zeros(indices.shape, bool).at[drops].set(among)
    slot, active = _find(candidates, indices)
    free = allowed & (~active | dropped[slot])
    order = jnp.argsort(jnp.where(free, -scores, jnp.full_like(scores, jnp.inf)), stable=True)
    grown = among & free[order]
    # Those that are dropped and grown at once stay.
    stays = jnp.zeros(indices.shape, bool).at[slot[order]].max(grown & active[order])
    leave, enter = among & ~stays[drops], grown & ~active[order]
    number = jnp.minimum(jnp.sum(leave), jnp.sum(enter))
    slots, sources = drops[_first(leave)], order[_first(enter)]
    place = jnp.arange(indices.size)
    return Move(jnp.where(place < number, slots, jnp.full_like(slots, indices.size)), sources)


def _find(entries: jax.Array, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the slot of each entry among the indices, and whether it is there at all."""
    order = jnp.argsort(indices)
    place = jnp.searchsorted(indices[order], entries)
    slot = order[jnp.minimum(place, indices.size - 1)]
    return slot, indices[slot] == entries


def _first(chosen: jax.Array) -> jax.Array:
    """Return the places of the chosen ones, in order, in front of anything."""
    return jnp.nonzero(chosen, size=chosen.size, fill_value=0)[0]
