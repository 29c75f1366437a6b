"""One ranking over all layers: the scores divide the budget."""

import dataclasses
import math
import operator
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import numpy as np

from jaxprune.schedules import as_sparsity
from jaxprune.types import Shapes


@dataclasses.dataclass(frozen=True)
class Global:
    """One ranking over all layers; see :func:`global_`."""

    exact_total: ClassVar[bool] = True
    min_density: float = 0.0
    min_kept: int = 0

    def floor(self, size: int) -> int:
        """Return how many of a layer's ``size`` weights are kept whatever their scores."""
        return min(size, max(self.min_kept, math.ceil(self.min_density * size - 1e-9)))

    def __call__(self, shapes: Shapes, sparsity: float) -> NoReturn:
        """Raise: the densities are not known before the scores are."""
        raise TypeError(
            "global_ has no densities without scores: it ranks all weights together. Pass it as "
            "allocation= to make_masks, prune or a transform, instead of calling it."
        )


def global_(*, min_density: float = 0.0, min_kept: int = 0) -> Global:
    """Rank all weights together, so that the scores divide the budget.

    The ``(1 − sparsity) · N`` best of all ``N`` weights are kept, after each layer has had its
    floor: ``max(min_kept, ⌈min_density · n_l⌉)``, or all of it if it is smaller. Floors guard
    against layer collapse, the loss of a whole layer at high sparsity.

    Args:
      min_density: share of each layer that is kept at least, in [0, 1].
      min_kept: number of weights of each layer that are kept at least.

    Returns:
      The allocation.

    Raises:
      ValueError: ``min_density`` outside [0, 1] or ``min_kept`` below 0.
      TypeError: an argument that is not a number, or ``min_kept`` not an integer; and when the
        allocation is called, since its densities are not known before the scores are.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> params = {"one": jnp.array([[4.0, 3.0]]), "two": jnp.array([[2.0, 1.0]])}
      >>> masks = jaxprune.make_masks(params, 0.5, allocation=jaxprune.allocation.global_())
      >>> masks["one"].tolist(), masks["two"].tolist()
      ([[True, True]], [[False, False]])
      >>> floor = jaxprune.allocation.global_(min_kept=1)
      >>> masks = jaxprune.make_masks(params, 0.5, allocation=floor)
      >>> masks["one"].tolist(), masks["two"].tolist()
      ([[True, False]], [[True, False]])

    Reference:
      Gupta et al., Is complexity required for neural network pruning? (Global MP),
      arXiv:2209.14624.
    """
    if min_density != 1.0:
        try:
            min_density = as_sparsity("min_density", min_density)
        except ValueError as error:
            raise ValueError(
                f"min_density must be in [0, 1], got {min_density}. It is the share of each layer "
                "that is kept at least."
            ) from error
    return Global(float(min_density), _as_count("min_kept", min_kept))


def _as_count(name: str, value: Any) -> int:
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(
            f"{name} must be an integer, got {value!r} of type {type(value).__name__}. "
            "It is the number of weights of each layer that are kept at least."
        )
    if number < 0:
        raise ValueError(
            f"{name} must be 0 or more, got {number}. "
            "It is the number of weights of each layer that are kept at least."
        )
    return number


def minimum_threshold(
    sparsities: Mapping[str, float], shapes: Shapes, sparsity: float, *, min_kept: int
) -> dict[str, float]:
    """Redistribute layer sparsities so that every layer keeps a minimum number of weights.

    Layers of at most ``min_kept`` weights stay dense. The others get
    ``s_l = min(λ · sparsities_l, 1 − min_kept / n_l)``, with λ such that
    ``Σ s_l · n_l = sparsity · Σ n_l``: the limit of the paper's loop, which rescales and clamps
    until the total is reached.

    Args:
      sparsities: sparsity of every layer by path, as a global ranking gave it.
      shapes: shape of every layer by path.
      sparsity: share of zeros among all weights that the result has, in [0, 1).
      min_kept: number of weights that each layer keeps at least.

    Returns:
      The new sparsity of every layer by path, in float64.

    Raises:
      ValueError: the minimum leaves too few weights to prune (the paper's code then loops for
        ever), or ``sparsity`` is outside [0, 1).

    Example:
      >>> from jaxprune import allocation
      >>> shapes = {"a": (10, 10), "b": (10, 100)}
      >>> given = {"a": 1.0, "b": 0.5}
      >>> new = allocation.minimum_threshold(given, shapes, 0.5, min_kept=30)
      >>> {path: round(value, 4) for path, value in new.items()}
      {'a': 0.7, 'b': 0.48}

    Reference:
      Gupta et al., Is complexity required for neural network pruning?, arXiv:2209.14624,
      section 3 (minimum threshold).
    """
    target, least = as_sparsity("sparsity", sparsity), _as_count("min_kept", min_kept)
    size = np.array([math.prod(shapes[path]) for path in sparsities], np.float64)
    given = np.array(list(sparsities.values()), np.float64)
    most = np.maximum(1.0 - least / size, 0.0)
    scaled = _fill(np.where(size <= least, 0.0, given), most, size, target * size.sum())
    if scaled is None:
        reachable = float((most * size)[given > 0].sum() / size.sum())
        raise ValueError(
            f"minimum_threshold cannot reach sparsity={target} with min_kept={least}: keeping "
            f"that many weights of each layer prunes at most {reachable:.6g}. Lower min_kept or "
            "the sparsity."
        )
    return dict(zip(sparsities, scaled.tolist(), strict=True))


def _fill(
    given: np.ndarray, most: np.ndarray, size: np.ndarray, budget: float
) -> np.ndarray | None:
    """Return ``min(scale * given, most)`` that prunes ``budget`` weights, or None."""
    full = np.zeros(len(given), bool)
    while True:
        left = budget - float((most * size)[full].sum())
        free = float((given * size)[~full].sum())
        if free <= 0.0:
            return np.where(full, most, 0.0) if left <= 1e-9 * budget else None
        scaled = np.where(full, most, given * (left / free))
        over = ~full & (scaled > most)
        if not over.any():
            return scaled
        full |= over
