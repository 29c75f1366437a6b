"""When, and how much: sparsity as a function of the training step.

Every schedule is a frozen dataclass that can be called like any optax schedule, inside or outside
``jit``. On the host, ``schedule.at(step)`` returns the same value in float64: transforms tabulate
their counts with it, because a count computed in float32 is off by one or more from 10^7 weights
on.
"""

import abc
import dataclasses
import operator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Constant",
    "Cosine",
    "OneShot",
    "Polynomial",
    "constant",
    "cosine",
    "cubic",
    "linear",
    "one_shot",
    "polynomial",
]


def as_sparsity(name: str, value: Any) -> float:
    """Return a valid sparsity as a float; raise an error that names the argument otherwise."""
    try:
        number = None if isinstance(value, (bool, str)) or np.ndim(value) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise TypeError(
            f"{name} must be a number in [0, 1), got {value!r} of type {type(value).__name__}. "
            "A sparsity is the share of zeros: 0.9 prunes 90% of the weights."
        )
    if not 0.0 <= number < 1.0:
        raise ValueError(
            f"{name} must be a finite number in [0, 1), got {number}. "
            "A sparsity is the share of zeros: 0.9 prunes 90% of the weights."
        )
    return number


def _as_step(name: str, value: Any) -> int:
    """Return a valid step as an int; raise an error that names the argument otherwise."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(
            f"{name} must be an integer number of steps, got {value!r} of type "
            f"{type(value).__name__}. Write int(...) around it."
        )
    if not 0 <= number < 2**31:
        raise ValueError(
            f"{name} must be in [0, 2**31), got {number}. Steps are counted from 0, "
            "one for each call of the optimizer's update."
        )
    return number


def _as_array(step: Any) -> jax.Array:
    """Return the step as int32 (float32 where it is not an integer)."""
    step = jnp.asarray(step)
    return step.astype(jnp.int32 if jnp.issubdtype(step.dtype, jnp.integer) else jnp.float32)


@dataclasses.dataclass(frozen=True)
class _Ramp(abc.ABC):
    """A way from ``init`` at ``begin`` to ``final`` at ``end``, constant before and after."""

    init: float
    final: float
    begin: int
    end: int
    offset: int = 0

    def __post_init__(self) -> None:
        for name in ("init", "final"):
            object.__setattr__(self, name, as_sparsity(name, getattr(self, name)))
        for name in ("begin", "end", "offset"):
            object.__setattr__(self, name, _as_step(name, getattr(self, name)))
        if self.begin >= self.end:
            raise ValueError(
                f"begin={self.begin} and end={self.end} leave an empty window: end must be greater "
                "than begin. To prune in a single step, use one_shot(sparsity, step=...)."
            )

    @abc.abstractmethod
    def _left(self, share: Any, xp: ModuleType) -> Any:
        """Return how much of the rise is left when a share of the window is: from 1 to 0."""

    def at(self, step: int) -> float:
        """Return the sparsity at a step in float64, on the host."""
        length = self.end - self.begin
        moved = min(step + self.offset - self.begin, length)
        if step < self.begin or moved == 0:
            return self.init
        left = float(self._left((length - moved) / length, np))
        return self.final - (self.final - self.init) * left

    def __call__(self, step: Any) -> jax.Array:
        """Return the sparsity at a step (of any shape, possibly traced) as float32."""
        length = self.end - self.begin
        elapsed = _as_array(step) - self.begin
        moved = jnp.where(elapsed < 0, 0, jnp.clip(elapsed + self.offset, 0, length))
        # The steps that are left, not those that have passed: exactly 0 at the end, where
        # 1 − progress can be negative, since compilers divide by multiplying.
        left = self._left((length - moved).astype(jnp.float32) / np.float32(length), jnp)
        ramp = np.float32(self.final) - np.float32(self.final - self.init) * left
        return jnp.where(moved == 0, np.float32(self.init), ramp)


@dataclasses.dataclass(frozen=True)
class Polynomial(_Ramp):
    """A polynomial ramp; see :func:`polynomial`."""

    power: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        power = self.power
        number = not isinstance(power, (bool, str)) and np.ndim(power) == 0
        if not number or not 0.0 < float(power) < float("inf"):
            raise ValueError(
                f"power must be a finite number above 0, got {power!r}. "
                "3 is the cubic schedule, 1 the linear one."
            )
        object.__setattr__(self, "power", float(power))

    def _left(self, share: Any, xp: ModuleType) -> Any:
        return xp.power(share, self.power)


@dataclasses.dataclass(frozen=True)
class Cosine(_Ramp):
    """Half a cosine wave; see :func:`cosine`."""

    def _left(self, share: Any, xp: ModuleType) -> Any:
        return 0.5 * (1.0 - xp.cos(xp.pi * share))


@dataclasses.dataclass(frozen=True)
class OneShot:
    """A single jump; see :func:`one_shot`."""

    sparsity: float
    step: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", as_sparsity("sparsity", self.sparsity))
        object.__setattr__(self, "step", _as_step("step", self.step))

    @property
    def begin(self) -> int:
        """The step of the jump."""
        return self.step

    @property
    def end(self) -> int:
        """The step of the jump."""
        return self.step

    @property
    def init(self) -> float:
        """The sparsity before the jump: 0."""
        return 0.0

    @property
    def final(self) -> float:
        """The sparsity from the jump on."""
        return self.sparsity

    def at(self, step: int) -> float:
        """Return the sparsity at a step in float64, on the host."""
        return self.sparsity if step >= self.step else 0.0

    def __call__(self, step: Any) -> jax.Array:
        """Return the sparsity at a step (of any shape, possibly traced) as float32."""
        return jnp.where(_as_array(step) >= self.step, np.float32(self.sparsity), np.float32(0.0))


@dataclasses.dataclass(frozen=True)
class Constant:
    """One sparsity at every step; see :func:`constant`."""

    sparsity: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", as_sparsity("sparsity", self.sparsity))

    @property
    def begin(self) -> None:
        """None: there is no window."""
        return None

    @property
    def end(self) -> None:
        """None: there is no window."""
        return None

    @property
    def init(self) -> float:
        """The sparsity at every step."""
        return self.sparsity

    @property
    def final(self) -> float:
        """The sparsity at every step."""
        return self.sparsity

    def at(self, step: int) -> float:
        """Return the sparsity at a step in float64, on the host."""
        del step
        return self.sparsity

    def __call__(self, step: Any) -> jax.Array:
        """Return the sparsity at a step (of any shape, possibly traced) as float32."""
        return jnp.full(jnp.shape(step), self.sparsity, jnp.float32)


def polynomial(
    init: float, final: float, *, begin: int, end: int, power: float = 3.0, offset: int = 0
) -> Polynomial:
    """Raise the sparsity along a polynomial that flattens out toward the end.

    ``s(t) = final + (init − final) · (1 − (t + offset − begin) / (end − begin))^power`` inside the
    window, ``init`` before ``begin`` and ``final`` from ``end − offset`` on.

    Args:
      init: sparsity at ``begin`` and before, in [0, 1).
      final: sparsity at ``end`` and after, in [0, 1).
      begin: first step of the ramp.
      end: last step of the ramp, greater than ``begin``.
      power: exponent, above 0; a larger one prunes earlier.
      offset: steps by which the ramp runs ahead. ``offset=1`` is jaxpruner's timing, which prunes
        a little at ``begin`` already and reaches ``final`` one step before ``end``.

    Returns:
      The schedule.

    Raises:
      ValueError: a sparsity outside [0, 1), an empty window, or a power that is not positive.
      TypeError: a step that is not an integer.

    Example:
      >>> from jaxprune import schedules
      >>> ramp = schedules.polynomial(0.0, 0.8, begin=100, end=200, power=2.0)
      >>> [round(ramp.at(step), 4) for step in (99, 100, 150, 200, 1000)]
      [0.0, 0.0, 0.6, 0.8, 0.8]

    Reference:
      Zhu and Gupta, To prune, or not to prune, arXiv:1710.01878, equation 1 (with power 3).
    """
    return Polynomial(init, final, begin, end, offset, power)


def cubic(init: float, final: float, *, begin: int, end: int) -> Polynomial:
    """Raise the sparsity along a cubic: fast while weights are redundant, slow at the end.

    ``s(t) = final + (init − final) · (1 − (t − begin) / (end − begin))^3`` inside the window.

    Args:
      init: sparsity at ``begin`` and before, in [0, 1).
      final: sparsity at ``end`` and after, in [0, 1).
      begin: first step of the ramp.
      end: last step of the ramp, greater than ``begin``.

    Returns:
      The schedule.

    Raises:
      ValueError: a sparsity outside [0, 1), or an empty window.
      TypeError: a step that is not an integer.

    Example:
      >>> from jaxprune import schedules
      >>> ramp = schedules.cubic(0.0, 0.9, begin=1_000, end=7_000)
      >>> [round(ramp.at(step), 4) for step in (0, 1_000, 4_000, 7_000, 9_000)]
      [0.0, 0.0, 0.7875, 0.9, 0.9]

    Reference:
      Zhu and Gupta, To prune, or not to prune, arXiv:1710.01878, equation 1.
    """
    return Polynomial(init, final, begin, end)


def linear(init: float, final: float, *, begin: int, end: int) -> Polynomial:
    """Raise the sparsity by the same amount at every step.

    ``s(t) = final + (init − final) · (1 − (t − begin) / (end − begin))`` inside the window.

    Args:
      init: sparsity at ``begin`` and before, in [0, 1).
      final: sparsity at ``end`` and after, in [0, 1).
      begin: first step of the ramp.
      end: last step of the ramp, greater than ``begin``.

    Returns:
      The schedule.

    Raises:
      ValueError: a sparsity outside [0, 1), or an empty window.
      TypeError: a step that is not an integer.

    Example:
      >>> from jaxprune import schedules
      >>> ramp = schedules.linear(0.0, 0.8, begin=0, end=4)
      >>> [round(ramp.at(step), 4) for step in range(6)]
      [0.0, 0.2, 0.4, 0.6, 0.8, 0.8]
    """
    return Polynomial(init, final, begin, end, power=1.0)


def cosine(init: float, final: float, *, begin: int, end: int) -> Cosine:
    """Raise the sparsity along half a cosine wave: slow at both ends.

    ``s(t) = final + (init − final) · (1 + cos(π (t − begin) / (end − begin))) / 2`` inside the
    window.

    Args:
      init: sparsity at ``begin`` and before, in [0, 1).
      final: sparsity at ``end`` and after, in [0, 1).
      begin: first step of the ramp.
      end: last step of the ramp, greater than ``begin``.

    Returns:
      The schedule.

    Raises:
      ValueError: a sparsity outside [0, 1), or an empty window.
      TypeError: a step that is not an integer.

    Example:
      >>> from jaxprune import schedules
      >>> ramp = schedules.cosine(0.0, 0.8, begin=0, end=4)
      >>> [round(ramp.at(step), 4) for step in range(6)]
      [0.0, 0.1172, 0.4, 0.6828, 0.8, 0.8]
    """
    return Cosine(init, final, begin, end)


def one_shot(sparsity: float, *, step: int = 0) -> OneShot:
    """Prune in a single step.

    ``s(t) = 0`` before ``step``, ``sparsity`` from ``step`` on; ``begin`` and ``end`` are both
    ``step``, so that a transform updates its masks exactly once.

    Args:
      sparsity: share of zeros from ``step`` on, in [0, 1).
      step: when to prune.

    Returns:
      The schedule.

    Raises:
      ValueError: a sparsity outside [0, 1), or a negative step.
      TypeError: a step that is not an integer.

    Example:
      >>> from jaxprune import schedules
      >>> jump = schedules.one_shot(0.5, step=3)
      >>> [jump.at(step) for step in (0, 2, 3, 9)]
      [0.0, 0.0, 0.5, 0.5]
    """
    return OneShot(sparsity, step)


def constant(sparsity: float) -> Constant:
    """Keep one sparsity at every step.

    There is no window (``begin`` and ``end`` are None): a transform goes on updating its masks.

    Args:
      sparsity: share of zeros at every step, in [0, 1).

    Returns:
      The schedule.

    Raises:
      ValueError: a sparsity outside [0, 1).

    Example:
      >>> from jaxprune import schedules
      >>> schedules.constant(0.5)(7)
      Array(0.5, dtype=float32)
    """
    return Constant(sparsity)
