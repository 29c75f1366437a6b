"""FinerCut: remove the sublayer without which the outputs change least, again and again."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.posttraining.distances import reverse_js_divergence
from jaxprune.types import Tree

Skipping = Callable[[Tree, Any, jax.Array], jax.Array]
"""``(params, batch, skip) -> outputs``: a model that leaves candidate i out where ``skip[i]``."""
Distance = Callable[[jax.Array, jax.Array], jax.Array]

_AT_A_TIME = 8  # candidates of one call of the compiled program


class Removal(NamedTuple):
    """One sublayer that was removed."""

    number: int  # of the candidate
    name: str
    distance: float  # of the outputs, without it and all that were removed before it


class Ranking(NamedTuple):
    """The sublayers in the order of their removal."""

    removed: tuple[Removal, ...]
    candidates: int

    def skip(self, count: int) -> np.ndarray:
        """Return what to leave out so that ``count`` sublayers are gone: bool (candidates,).

        Raises:
          ValueError: more than were ranked, or fewer than none.
        """
        if not 0 <= count <= len(self.removed):
            raise ValueError(
                f"count must be in [0, {len(self.removed)}], the sublayers that were ranked; got "
                f"{count}. Rank more with finercut(count=...)."
            )
        skip = np.zeros(self.candidates, bool)
        skip[[one.number for one in self.removed[:count]]] = True
        return skip


def finercut(
    fn: Skipping,
    params: Tree,
    batches: Iterable[Any],
    names: Sequence[str],
    *,
    count: int | None = None,
    distance: Distance = reverse_js_divergence,
    front: float = 0.0,
    together: int = 1,
    progress: Callable[[Removal], None] = lambda removal: None,
) -> Ranking:
    """Rank sublayers by how little the model's outputs change without them, greedily (FinerCut).

    In every round each candidate that is left is taken out in addition to those removed, and the
    one goes whose outputs are nearest to those of the *whole* model. With n candidates a full
    ranking takes n (n + 1) / 2 passes over the batches. One program, compiled once, serves all of
    them.

    Args:
      fn: ``(params, batch, skip) -> outputs`` with ``skip`` bool (candidates,); it leaves out what
        is True. `sublayers` makes one of any traced model.
      params: its parameters.
      batches: of ``fn``, all of one shape. The published runs take 10 sequences of 256 tokens. The
        outputs of the whole model are kept for all of them.
      names: of the candidates, in order of depth; equal distances go to the first.
      count: how many are removed; None for all. int(candidates · share) is the published count.
      distance: ``(reference, outputs) -> scalar``; by default that of the published runs.
      front: share of the sublayers, from the first on, that are spared at first: with n candidates
        the first ``2 · (⌊n · front / 2⌋ + 1)`` until ``⌊n · front⌋ + 1`` others are gone. 0 for
        none; the paper's Llama-3-8B has 0.4.
      together: candidates that go through the model side by side; each takes its own activations.
      progress: called after each removal.

    Returns:
      The ranking; ``skip(count)`` of it is what ``fn`` takes.

    Raises:
      ValueError: no batch, no candidate, a share, a count or a number out of range, or outputs that
        are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> def model(params, x, skip):
      ...     for i, layer in enumerate(params):
      ...         x = x + jnp.where(skip[i], 0.0, jnp.tanh(x @ layer))
      ...     return x
      >>> params = [jnp.eye(2), 0.0 * jnp.eye(2), 0.1 * jnp.eye(2)]
      >>> names = ["first", "second", "third"]
      >>> ranking = posttraining.finercut(model, params, [jnp.array([[1.0, -2.0]])], names, count=2)
      >>> [one.name for one in ranking.removed], ranking.skip(1).tolist()
      (['second', 'third'], [False, True, False])

    Reference:
      Zhang et al., FinerCut: finer-grained interpretable layer pruning for large language models,
      arXiv:2405.18218.
    """
    some, n = list(batches), len(names)
    count = n if count is None else count
    _check(some, names, count, front, together)
    step = functools.partial(_step, fn, distance, together, params)
    whole = [_whole(fn, n, params, batch) for batch in some]
    removed: list[Removal] = []
    while len(removed) < count:
        gone = [one.number for one in removed]
        open_ = [i for i in _candidates(n, front, len(removed)) if i not in gone]
        open_ = open_ or [i for i in range(n) if i not in gone]  # all that is left is in front
        found = np.zeros(len(open_))
        for batch, reference in zip(some, whole, strict=True):
            found += _distances(step, batch, reference, _flags(n, gone, open_))
        _refuse_infinite(found, [names[i] for i in open_])
        best = int(found.argmin())
        removed.append(Removal(open_[best], names[open_[best]], float(found[best]) / len(some)))
        progress(removed[-1])
    return Ranking(tuple(removed), n)


def _check(
    batches: list[Any], names: Sequence[str], count: int, front: float, together: int
) -> None:
    if not batches:
        raise ValueError("batches is empty. Give at least one batch of fn.")
    if not names:
        raise ValueError("names is empty. Give one name for each sublayer that may be removed.")
    if not 0 <= count <= len(names):
        raise ValueError(
            f"count must be in [0, {len(names)}], the number of candidates; got {count}."
        )
    if not 0.0 <= front < 1.0:
        raise ValueError(
            f"front must be in [0, 1), got {front}: the share of sublayers that are spared."
        )
    if together < 1:
        raise ValueError(
            f"together must be 1 or more, got {together}: candidates that are run side by side."
        )


def _candidates(n: int, front: float, removed: int) -> range:
    """Return which sublayers may go: all, or all behind those that are spared."""
    if not front or removed >= int(n * front) + 1:
        return range(n)
    return range(min(2 * (int(n * front / 2) + 1), n), n)


def _flags(n: int, gone: Sequence[int], open_: Sequence[int]) -> np.ndarray:
    """Return what to skip for each open candidate: bool (open, n)."""
    flags = np.zeros((len(open_), n), bool)
    flags[:, list(gone)] = True
    flags[np.arange(len(open_)), list(open_)] = True
    return flags


def _distances(step: Any, batch: Any, reference: jax.Array, flags: np.ndarray) -> np.ndarray:
    """Return the distance for each row of flags, in calls of one shape."""
    size = min(_AT_A_TIME, flags.shape[1])
    missing = -len(flags) % size
    padded = np.concatenate([flags, np.repeat(flags[-1:], missing, axis=0)])
    parts = [
        step(batch, reference, jnp.asarray(padded[i : i + size]))
        for i in range(0, len(padded), size)
    ]
    return np.concatenate([np.asarray(part, np.float64) for part in parts])[: len(flags)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _step(
    fn: Skipping,
    distance: Distance,
    together: int,
    params: Tree,
    batch: Any,
    reference: jax.Array,
    flags: jax.Array,
) -> jax.Array:
    """Return the distance for each row of flags; the program is kept for the next call."""

    def one(skip: jax.Array) -> jax.Array:
        return distance(reference, fn(params, batch, skip))

    return lax.map(one, flags, batch_size=None if together == 1 else together)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _whole(fn: Skipping, n: int, params: Tree, batch: Any) -> jax.Array:
    """Return the outputs of the whole model, computed as those of a candidate are."""
    return lax.map(lambda skip: fn(params, batch, skip), jnp.zeros((1, n), bool))[0]


def _refuse_infinite(found: np.ndarray, names: Sequence[str]) -> None:
    bad = [name for name, value in zip(names, found, strict=True) if not np.isfinite(value)]
    if bad:
        raise ValueError(
            f"the outputs' distance without {bad[0]!r} is not finite. Look at the model's outputs "
            "on the batches, and take another distance= where outputs are -inf on purpose."
        )
