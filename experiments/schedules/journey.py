"""The schedules of The Journey Matters (arXiv:2501.12486): from here to there of the compute."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Geometric:
    """Prune the same share of what is left at each of ``count`` updates, the first at ``begin``.

    The i-th of them, from 0, leaves the density ``(1 − final)^((i + 1) / count)``.
    """

    final: float
    begin: int
    every: int
    count: int

    @property
    def end(self) -> int:
        """Return the step of the last update."""
        return self.begin + self.every * (self.count - 1)

    def at(self, step: int) -> float:
        """Return the sparsity at a step, on the host."""
        if step < self.begin:
            return 0.0
        if step >= self.end:
            return self.final
        return 1.0 - (1.0 - self.final) ** (((step - self.begin) // self.every + 1) / self.count)

    def __call__(self, step: Any) -> jax.Array:
        """Return the sparsity at a step, possibly traced, as float32."""
        index = jnp.clip((step - self.begin) // self.every + 1, 0, self.count)
        left = jnp.float32(1.0 - self.final) ** (index.astype(jnp.float32) / np.float32(self.count))
        return np.float32(1.0) - left


@dataclasses.dataclass(frozen=True)
class Journey:
    """Training that prunes from one share of its compute to another.

    A step costs its density, so that sparse steps are cheap and there are more of them.

    Attributes:
      begin: share of the compute that is spent before the first update, in [0, 1).
      end: share that is spent at the last one, in (begin, 1].
      sparsity: at the end.
      compute: all of it, in dense steps.
      every: steps between updates.
    """

    begin: float
    end: float
    sparsity: float
    compute: float
    every: int

    @property
    def schedule(self) -> Geometric:
        """Return the schedule: as many updates as spend the compute between begin and end best."""
        wanted = (self.end - self.begin) * self.compute
        counts = range(2, 2 + math.ceil(wanted / self.every / (1.0 - self.sparsity)))
        count = min(counts, key=lambda n: abs(self._ramp(n) - wanted))
        return Geometric(self.sparsity, round(self.begin * self.compute), self.every, count)

    @property
    def steps(self) -> int:
        """Return the number of steps of the whole training."""
        schedule = self.schedule
        left = self.compute - schedule.begin - self._ramp(schedule.count)
        return schedule.end + max(1, round(left / (1.0 - self.sparsity)))

    def spent(self, steps: int) -> float:
        """Return the compute of the first steps, in dense steps."""
        schedule = self.schedule
        return math.fsum(1.0 - schedule.at(step) for step in range(steps))

    def _ramp(self, count: int) -> float:
        """Return the compute from the first update to the last of ``count``."""
        density = 1.0 - self.sparsity
        return self.every * math.fsum(density ** ((i + 1) / count) for i in range(count - 1))
