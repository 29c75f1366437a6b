"""How many of its live weights does an update drop? A share, fixed or a function of the step."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

from jaxprune.transforms._timetable import as_period

Drop: TypeAlias = float | Callable[[int], float]
"""Share of the live weights that an update drops: a number, or a function of the step (host)."""

_A_SHARE = "It is the share of a layer's live weights that an update drops and grows anew."


def cosine_drop(share: float, end: int, *, floor: float = 0.0) -> Callable[[int], float]:
    """Let the share of dropped weights fall along a half cosine.

    ``floor + (share − floor) / 2 · (1 + cos(π · step / end))``, and ``floor`` from ``end`` on.

    Args:
      share: share at step 0, in [0, 1).
      end: step at which it reaches the floor.
      floor: share at the end, in [0, 1): 0 in RigL, 0.005 in GraNet and SNFS.

    Returns:
      A function of the step, evaluated on the host.

    Raises:
      ValueError: a share outside [0, 1) or an end below 1.

    Example:
      >>> import jaxprune
      >>> drop = jaxprune.transforms.cosine_drop(0.3, end=100)
      >>> [round(drop(step), 3) for step in (0, 50, 100)]
      [0.3, 0.15, 0.0]

    Reference:
      Evci et al., Rigging the lottery, arXiv:1911.11134.
    """
    return _Cosine(as_share("share", share), as_share("floor", floor), as_period("end", end))


def linear_drop(share: float, end: int, *, floor: float = 0.0) -> Callable[[int], float]:
    """Let the share of dropped weights fall along a line.

    ``floor + (share − floor) · (1 − step / end)``, and ``floor`` from ``end`` on.

    Args:
      share: share at step 0, in [0, 1).
      end: step at which it reaches the floor.
      floor: share at the end, in [0, 1).

    Returns:
      A function of the step, evaluated on the host.

    Raises:
      ValueError: a share outside [0, 1) or an end below 1.

    Example:
      >>> import jaxprune
      >>> drop = jaxprune.transforms.linear_drop(0.5, end=10, floor=0.1)
      >>> [round(drop(step), 3) for step in (0, 5, 10, 20)]
      [0.5, 0.3, 0.1, 0.1]
    """
    return _Linear(as_share("share", share), as_share("floor", floor), as_period("end", end))


@dataclasses.dataclass(frozen=True)
class _Cosine:
    share: float
    floor: float
    end: int

    def __call__(self, step: int) -> float:
        fallen = (1.0 + math.cos(math.pi * min(step / self.end, 1.0))) / 2.0
        return self.floor + (self.share - self.floor) * fallen


@dataclasses.dataclass(frozen=True)
class _Linear:
    share: float
    floor: float
    end: int

    def __call__(self, step: int) -> float:
        return self.floor + (self.share - self.floor) * (1.0 - min(step / self.end, 1.0))


def as_drop(drop: Drop) -> Drop:
    """Return the drop share if it is in range, or is a function."""
    return drop if callable(drop) else as_share("drop", drop)


def as_share(name: str, share: Any) -> float:
    """Return a share as a float, or raise an error that names the argument."""
    try:
        number = None if isinstance(share, (bool, str)) else float(share)
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise TypeError(
            f"{name} must be a number in [0, 1), got {share!r} of type {type(share).__name__}. "
            f"{_A_SHARE}"
        )
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{name} must be a share in [0, 1), got {number}. {_A_SHARE}")
    return number


def share_at(drop: Drop, step: int) -> float:
    """Return the share that the update at a step drops."""
    return as_share(f"drop at step {step}", drop(step) if callable(drop) else drop)
