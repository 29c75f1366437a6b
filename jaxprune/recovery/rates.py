"""What share of its entries a sparse delta moves, by step (SFT)."""

import dataclasses
import math
from collections.abc import Callable

Rate = Callable[[int], float]
"""``step -> share`` of the entries that are moved, in [0, 1], on the host."""


@dataclasses.dataclass(frozen=True)
class LinearRate:
    """``initial · (1 − step / steps)``; see :func:`linear_rate`."""

    initial: float
    steps: int

    def __call__(self, step: int) -> float:
        """Return the share at a step."""
        return self.initial * max(1.0 - step / self.steps, 0.0)


@dataclasses.dataclass(frozen=True)
class CosineRate:
    """``initial · (1 + cos(π · step / steps)) / 2``; see :func:`cosine_rate`."""

    initial: float
    steps: int

    def __call__(self, step: int) -> float:
        """Return the share at a step."""
        return self.initial * (1.0 + math.cos(math.pi * min(step / self.steps, 1.0))) / 2.0


def linear_rate(initial: float, steps: int) -> LinearRate:
    """Move fewer and fewer entries, down to none at the end of training.

    Args:
      initial: share at step 0, in [0, 1].
      steps: of training in all.

    Returns:
      ``step -> share``.

    Raises:
      ValueError: a share out of range, or no steps.

    Example:
      >>> from jaxprune import recovery
      >>> recovery.linear_rate(0.5, 100)(50)
      0.25
    """
    _check(initial, steps)
    return LinearRate(initial, steps)


def cosine_rate(initial: float, steps: int) -> CosineRate:
    """Move fewer and fewer entries, along half a cosine.

    Args:
      initial: share at step 0, in [0, 1].
      steps: of training in all.

    Returns:
      ``step -> share``.

    Raises:
      ValueError: a share out of range, or no steps.

    Example:
      >>> from jaxprune import recovery
      >>> recovery.cosine_rate(0.5, 100)(100)
      0.0
    """
    _check(initial, steps)
    return CosineRate(initial, steps)


def _check(initial: float, steps: int) -> None:
    if not 0.0 <= initial <= 1.0:
        raise ValueError(
            f"initial must be in [0, 1], got {initial!r}. It is the share of the entries that the "
            "first move takes."
        )
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps!r}. It is the length of training.")
