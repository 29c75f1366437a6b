"""Allocations that spare the ends of a network and divide the rest of the budget."""

import dataclasses
import math
import re
from typing import ClassVar

from jaxprune._core import paths
from jaxprune.allocation.erdos import erdos_renyi_kernel
from jaxprune.allocation.given import uniform
from jaxprune.schedules import as_sparsity
from jaxprune.types import Shapes


@dataclasses.dataclass(frozen=True)
class Spared:
    """Densities of their own for the ends; see :func:`uniform_plus` and :func:`erk_plus`.

    Attributes:
      name: of the rule, for messages.
      first: regular expression of the layers that stay dense, or None.
      last: regular expression of the layers with a density of their own.
      last_density: that density.
      at_least: whether it is a minimum, and the overall density serves where that is higher.
    """

    exact_total: ClassVar[bool] = True
    name: str
    first: str | None
    last: str
    last_density: float
    at_least: bool

    def __call__(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Return the density of every layer by path."""
        if not shapes:
            return {}
        ends = self._ends(shapes, 1.0 - sparsity)
        sizes = {path: math.prod(shape) for path, shape in shapes.items()}
        middle = {path: shape for path, shape in shapes.items() if path not in ends}
        left = (1.0 - sparsity) * sum(sizes.values()) - sum(ends[p] * sizes[p] for p in ends)
        density = left / sum(sizes[path] for path in middle) if middle else 0.0
        if density <= 0.0:
            raise ValueError(
                f"{self.name} cannot reach sparsity={sparsity}: its first and last layers "
                f"({paths.listed(map(repr, ends))}) keep "
                f"{sum(ends[p] * sizes[p] for p in ends):.6g} of {sum(sizes.values())} weights, "
                "and no more may be left. Lower the sparsity or the density of the last."
            )
        rule = uniform if self.at_least else erdos_renyi_kernel
        found = ends | rule(middle, 1.0 - min(density, 1.0))
        return {path: found[path] for path in shapes}

    def _ends(self, shapes: Shapes, density: float) -> dict[str, float]:
        own = max(self.last_density, density) if self.at_least else self.last_density
        # Where a fixed density would leave more than the others can take, all are dense.
        own = 1.0 if density >= 1.0 else own
        ends = {path: own for path in shapes if re.search(self.last, path)}
        if self.first is not None:
            ends |= {path: 1.0 for path in shapes if re.search(self.first, path)}
        for regex in (self.first, self.last):
            if regex is not None and not any(re.search(regex, path) for path in shapes):
                raise ValueError(
                    f"{self.name}: the regex {regex!r} is found in none of the paths "
                    f"{paths.listed(map(repr, shapes))}. Correct it."
                )
        return ends


def uniform_plus(*, first: str, last: str, min_last: float = 0.2) -> Spared:
    """Prune uniformly, but keep the first layer dense and the last one at a minimum.

    ``d_first = 1``, ``d_last = max(min_last, d)``, and all others
    ``d_mid = (d · N − n_first − d_last · n_last) / (N − n_first − n_last)``: the total is exact.

    Args:
      first: regular expression of the first layer, searched in the path. The order of a tree says
        nothing about the order of the layers.
      last: regular expression of the last layer.
      min_last: density that the last layer keeps at least, in [0, 1].

    Returns:
      The allocation.

    Raises:
      ValueError: an invalid regex, ``min_last`` outside [0, 1]. When it is called: a regex found
        in no path, or a sparsity at which the ends alone exceed the budget.

    Example:
      >>> from jaxprune import allocation
      >>> shapes = {"stem": (3, 10), "body": (100, 10), "head": (10, 10)}
      >>> densities = allocation.uniform_plus(first="stem", last="head")(shapes, 0.9)
      >>> {path: round(density, 3) for path, density in densities.items()}
      {'stem': 1.0, 'body': 0.063, 'head': 0.2}

    Reference:
      Liu et al., The unreasonable effectiveness of random pruning, arXiv:2202.02643, section 3.2.
      Differs from its code, which divides by N (and by nothing where d is above 0.2), so that the
      total misses the budget, and which lets ``d_mid`` become negative.
    """
    for name, regex in (("first", first), ("last", last)):
        _check_regex(name, regex)
    return Spared("uniform_plus", first, last, _as_density("min_last", min_last), True)


def erk_plus(*, last: str, last_density: float = 1.0) -> Spared:
    """Divide by Erdős–Rényi with kernel, but give the last layer a density of its own.

    The others get `erdos_renyi_kernel` of what is left:
    ``d' = (d · N − d_last · n_last) / (N − n_last)``. The total is exact.

    Args:
      last: regular expression of the last layer, searched in the path.
      last_density: its density, in [0, 1].

    Returns:
      The allocation.

    Raises:
      ValueError: an invalid regex, ``last_density`` outside [0, 1]. When it is called: a regex
        found in no path, or a sparsity at which the last layer alone exceeds the budget.

    Example:
      >>> from jaxprune import allocation
      >>> shapes = {"a": (100, 100), "b": (200, 100), "head": (100, 10)}
      >>> densities = allocation.erk_plus(last="head")(shapes, 0.9)
      >>> {path: round(density, 3) for path, density in densities.items()}
      {'a': 0.084, 'b': 0.063, 'head': 1.0}

    Reference:
      Liu et al., The unreasonable effectiveness of random pruning, arXiv:2202.02643, section 3.2.
    """
    _check_regex("last", last)
    return Spared("erk_plus", None, last, _as_density("last_density", last_density), False)


def _check_regex(name: str, regex: str) -> None:
    try:
        re.compile(regex)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{name}={regex!r} is not a regular expression ({error}). It is searched in paths such "
            "as 'Dense_0/kernel'."
        ) from error


def _as_density(name: str, value: float) -> float:
    try:
        return 1.0 if value == 1.0 else as_sparsity(name, value)
    except ValueError as error:
        raise ValueError(
            f"{name} must be in [0, 1], got {value}. It is the share of the last layer to keep."
        ) from error
