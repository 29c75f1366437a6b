"""Ask the library for given counts, where a reference rounds by another rule."""

import math
from collections.abc import Mapping

from jaxprune.types import Allocation, Shapes


def counts(kept: Mapping[str, int]) -> Allocation:
    """An allocation that keeps a given number of weights of each layer."""

    def allocate(shapes: Shapes, sparsity: float) -> dict[str, float]:
        del sparsity
        return {path: kept[path] / math.prod(shape) for path, shape in shapes.items()}

    return allocate


def sparsity(kept: int, size: int) -> float:
    """The sparsity at which `kept` of `size` weights are left."""
    return 1.0 - kept / size
