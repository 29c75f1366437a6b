"""Means over seeds, and when one is above another."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Sample(NamedTuple):
    """Values of one quantity, one for each seed."""

    mean: float
    sd: float  # of the sample, with n − 1; 0 for a single value
    n: int

    def shown(self, scale: float = 100.0, digits: int = 2) -> str:
        """Write the mean, with the standard deviation if there are several values."""
        mean = f"{scale * self.mean:.{digits}f}"
        return mean if self.n == 1 else f"{mean} ± {scale * self.sd:.{digits}f}"


class Difference(NamedTuple):
    """The mean of one sample minus that of another."""

    delta: float
    error: float  # standard error of delta; infinite where a sample has one value

    @property
    def within(self) -> bool:
        """Whether it is no more than two standard errors: noise."""
        return abs(self.delta) <= 2 * self.error

    @property
    def above(self) -> bool:
        """Whether it is positive beyond noise."""
        return self.delta > 0 and not self.within

    @property
    def below(self) -> bool:
        """Whether it is negative beyond noise."""
        return self.delta < 0 and not self.within

    def shown(self, scale: float = 100.0, digits: int = 2) -> str:
        """Write it with its standard error."""
        delta = f"{scale * self.delta:+.{digits}f}"
        return delta if math.isinf(self.error) else f"{delta} ± {scale * self.error:.{digits}f}"


def sample(values: Sequence[float]) -> Sample:
    """Return mean and standard deviation of the values."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Sample(float(np.mean(values)), sd, len(values))


def difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Return ``mean(b) − mean(a)`` with its standard error, ``√(sd_a²/n_a + sd_b²/n_b)``."""
    one, other = sample(a), sample(b)
    alone = min(one.n, other.n) == 1
    error = math.inf if alone else math.sqrt(one.sd**2 / one.n + other.sd**2 / other.n)
    return Difference(other.mean - one.mean, error)
