"""The selection by a stable sort: slow, gathers everything, and plain to see right."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np


def top_k(scores: Any, k: int) -> np.ndarray:
    """Keep the k largest: NaN last, -0.0 as 0.0, ties in the order of the flat index."""
    values = _comparable(scores).reshape(-1)
    nan = values != values
    numbers = np.flatnonzero(~nan)
    # Sorted backwards, from behind: the largest first, equals in order. Negating would overflow.
    rising = np.argsort(values[numbers][::-1], kind="stable")
    order = np.concatenate([numbers[::-1][rising][::-1], np.flatnonzero(nan)])
    mask = np.zeros(values.size, bool)
    mask[order[:k]] = True
    return mask.reshape(np.shape(scores))


def top_k_along(scores: Any, k: Any, axes: Sequence[int]) -> np.ndarray:
    """Keep k along some axes; k is an integer, or one for each position of the other axes."""
    scores = _comparable(scores)
    others = [a for a in range(scores.ndim) if a not in axes]
    last = [*others, *sorted(axes)]
    counts = np.broadcast_to(k, [1 if a in axes else n for a, n in enumerate(scores.shape)])
    moved, counts = scores.transpose(last), counts.transpose(last)
    mask = np.zeros(moved.shape, bool)
    for place in np.ndindex(*moved.shape[: len(others)]):
        mask[place] = top_k(moved[place], counts[place].item())
    return mask.transpose(np.argsort(last))


def global_top_k(leaves: Sequence[Any], k: int) -> list[np.ndarray]:
    """Keep the k largest of all leaves together."""
    flat = np.concatenate([_comparable(leaf).reshape(-1) for leaf in leaves])
    cuts = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    parts = np.split(top_k(flat, k), cuts)
    return [part.reshape(np.shape(x)) for part, x in zip(parts, leaves, strict=True)]


def _comparable(scores: Any) -> np.ndarray:
    """Return scores in a type that numpy orders: float64 holds every narrower number."""
    scores = np.asarray(scores)
    return scores.astype(np.float64) if jnp.issubdtype(scores.dtype, jnp.floating) else scores
