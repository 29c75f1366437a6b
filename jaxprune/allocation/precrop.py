"""The allocation that keeps about equally many weights, or equal work, of each layer."""

import dataclasses
import math
from collections.abc import Mapping

from jaxprune._core import paths
from jaxprune.types import Shapes


@dataclasses.dataclass(frozen=True)
class PreCrop:
    """Densities from the layers' sizes or costs alone; see :func:`precrop`."""

    costs: tuple[tuple[str, float], ...] | None = None

    @property
    def exact_total(self) -> bool:
        """Whether the budget is one of weights."""
        return self.costs is None

    def __call__(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Return the density of every layer by path."""
        given = None if self.costs is None else dict(self.costs)
        missing = [path for path in shapes if given is not None and path not in given]
        if missing:
            raise ValueError(
                f"precrop: costs has no entry for {paths.listed(map(repr, missing))}. Give the "
                "cost of every prunable parameter by path, or exclude it with where=."
            )
        cost = {p: float(given[p] if given else math.prod(s)) for p, s in shapes.items()}
        if sparsity <= 0.0 or not cost:
            return dict.fromkeys(shapes, 1.0)
        level = _level(sorted(cost.values()), (1.0 - sparsity) * math.fsum(cost.values()))
        return {path: min(1.0, level / value) for path, value in cost.items()}


def _level(costs: list[float], budget: float) -> float:
    """Return the level ``c`` at which ``Σ min(cost, c)`` is the budget; costs in rising order."""
    for position, cost in enumerate(costs):
        level = budget / (len(costs) - position)
        if level <= cost:
            return level
        budget -= cost  # this layer is dense
    return costs[-1]


def precrop(*, costs: Mapping[str, float] | None = None) -> PreCrop:
    """Maximise the expected flow through the network, whatever its weights (PreCrop).

    ``density_l = min(1, c / n_l)`` with ``c`` such that ``Σ density_l · n_l`` is the budget: the
    densities with the largest ``Σ log density_l``. With ``costs`` it is ``min(1, c / f_l)``, and
    the budget one of costs: ``sparsity`` is then the share of ``Σ f_l`` that is saved.

    Args:
      costs: the cost ``f_l`` of every prunable parameter by path, such as the FLOPs of its layer;
        above 0. None counts weights.

    Returns:
      The allocation.

    Raises:
      ValueError: a cost that is not above 0. When it is called: a path without a cost.

    Example:
      >>> from jaxprune import allocation
      >>> shapes = {"one": (10, 10), "two": (10, 20), "three": (30, 30)}
      >>> {path: round(d, 3) for path, d in allocation.precrop()(shapes, 0.5).items()}
      {'one': 1.0, 'two': 1.0, 'three': 0.333}
      >>> {path: round(d, 3) for path, d in allocation.precrop()(shapes, 0.9).items()}
      {'one': 0.4, 'two': 0.2, 'three': 0.044}

    Reference:
      Cai et al., Structured pruning of CNNs at initialization, arXiv:2203.02549.
    """
    for path, cost in (costs or {}).items():
        if not 0.0 < cost < math.inf:
            raise ValueError(
                f"costs must be finite and above 0, got {cost} for {path!r}. A cost is what the "
                "dense layer takes, such as its FLOPs."
            )
    return PreCrop(None if costs is None else tuple((p, float(c)) for p, c in costs.items()))
