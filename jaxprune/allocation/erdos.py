"""Allocations from the sparsity of random graphs: wide layers are pruned more than narrow ones."""

import dataclasses
import math
from typing import ClassVar

from jaxprune.types import Shapes


@dataclasses.dataclass(frozen=True, repr=False)
class ErdosRenyi:
    """Densities from the layers' widths, with the total exact.

    ``density_l = min(1, ε · raw_l)`` with ``raw_l = (n_in + n_out) / (n_in · n_out)`` for
    ``erdos_renyi`` (the last two axes: ``[in, out]`` and HWIO kernels) and
    ``raw_l = sum(shape) / prod(shape)`` for ``erdos_renyi_kernel``. ε is such that
    ``Σ density_l · n_l = (1 − sparsity) · Σ n_l``; what a layer at density 1 cannot take is shared
    by the others.

    Call it with ``(shapes, sparsity)``: the shape of every prunable weight by path, and the share
    of zeros among all of them. It returns the density of each by path. A weight of rank 1 is an
    error for ``erdos_renyi``.

    Example:
      >>> from jaxprune import allocation
      >>> shapes = {"a": (10, 10), "b": (100, 100)}
      >>> densities = allocation.erdos_renyi(shapes, 0.9)
      >>> {path: round(density, 4) for path, density in densities.items()}
      {'a': 0.9182, 'b': 0.0918}

    Reference:
      Mocanu et al., arXiv:1707.04780 (Erdős–Rényi); Evci et al., arXiv:1911.11134, appendix
      (with kernel).
    """

    exact_total: ClassVar[bool] = True
    kernel: bool

    def __call__(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Return the density of every layer by path."""
        raw = {path: self._raw(path, shape) for path, shape in shapes.items()}
        return _solve(raw, {p: math.prod(s) for p, s in shapes.items()}, 1.0 - sparsity)

    def _raw(self, path: str, shape: tuple[int, ...]) -> float:
        if len(shape) < 2 and not self.kernel:
            raise ValueError(
                f"erdos_renyi does not fit {path!r} of shape {shape}: it needs an input and an "
                "output axis, the last two. Use erdos_renyi_kernel, or exclude this parameter "
                "with where=."
            )
        sides = shape if self.kernel else shape[-2:]
        return sum(sides) / math.prod(sides)

    def __repr__(self) -> str:
        return "erdos_renyi_kernel" if self.kernel else "erdos_renyi"


def _solve(raw: dict[str, float], sizes: dict[str, int], density: float) -> dict[str, float]:
    """Return ``min(1, eps * raw)`` with eps such that the total density is exact.

    The budget that is left never reaches 0: layers become dense only where their share of it
    exceeds their size.
    """
    free = dict(raw)
    budget = density * sum(sizes.values())
    while free:
        eps = budget / sum(free[path] * sizes[path] for path in free)
        most = max(free.values())
        if eps * most <= 1.0:
            return {path: eps * free[path] if path in free else 1.0 for path in raw}
        # All that attain the maximum, or the order of equal layers would matter.
        dense = [path for path in free if math.isclose(free[path], most, rel_tol=1e-12)]
        for path in dense:
            del free[path]
            budget -= sizes[path]
    return dict.fromkeys(raw, 1.0)


erdos_renyi = ErdosRenyi(kernel=False)
erdos_renyi_kernel = ErdosRenyi(kernel=True)
