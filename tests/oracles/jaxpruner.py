"""Where jaxpruner's rules differ from ours: when it updates, and how it rounds."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxprune import schedules
from tests.oracles import exact


@dataclasses.dataclass(frozen=True)
class AtMultiples:
    """A ramp whose masks change at multiples of ``every`` inside its window.

    That is jaxpruner's rule. Ours counts from ``begin`` and always ends on ``end``; both are the
    same once the window is cut to the first and the last multiple in it.

    Attributes:
      ramp: the schedule.
      every: steps between updates.
      size: of the only layer, whose count is then rounded as jaxpruner rounds it.
    """

    ramp: schedules.Polynomial
    every: int
    size: int

    @property
    def begin(self) -> int:
        return -(-self.ramp.begin // self.every) * self.every

    @property
    def end(self) -> int:
        return self.ramp.end // self.every * self.every

    @property
    def final(self) -> float:
        return self.at(self.end)

    def at(self, step: int) -> float:
        return exact.sparsity(kept(self.size, self.ramp.at(step)), self.size)

    def __call__(self, step: Any) -> jax.Array:
        return self.ramp(step)


def kept(size: int, sparsity: float) -> int:
    """The number of weights that jaxpruner keeps: rounded in float32, and at least 1."""
    density = np.float32(1.0) - np.float32(sparsity)
    return max(1, int(np.round(np.float32(size) * density)))
