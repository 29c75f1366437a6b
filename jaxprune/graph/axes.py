"""Which weights, along which axes: what the transforms ask of a graph."""

import dataclasses
import re
from typing import Any

import jax.numpy as jnp

from jaxprune._core import paths
from jaxprune.graph.program import Program
from jaxprune.graph.uses import WeightUse


@dataclasses.dataclass(frozen=True)
class Products:
    """A ``where``: the parameters that a matrix product or a convolution consumes.

    Attributes:
      chosen: their paths.
      known: all paths of the graph.
    """

    chosen: frozenset[str]
    known: frozenset[str] = dataclasses.field(repr=False)

    def __call__(self, path: str, leaf: Any) -> bool:
        """Tell whether a parameter is chosen.

        Raises:
          ValueError: the graph has no such parameter.
        """
        del leaf
        if path not in self.known:
            raise ValueError(
                f"where=graph.where() is asked about {path!r}, which the graph does not have; it "
                f"has {paths.listed(sorted(self.known))}. Trace the function with the same tree of "
                "parameters that is pruned."
            )
        return path in self.chosen

    def __repr__(self) -> str:
        return f"graph.where({paths.listed(sorted(self.chosen))})"


def products(program: Program, *, of_parameters: bool) -> Products:
    """Return the parameters whose zeros are zeros of a product with data."""
    chosen = {
        use.path
        for use in program.uses
        if counts(use, of_parameters=of_parameters)
        and jnp.issubdtype(program.params[use.path].dtype, jnp.floating)
    }
    return Products(frozenset(chosen), frozenset(program.params))


def counts(use: WeightUse, *, of_parameters: bool = False) -> bool:
    """Tell whether a use is one that pruning is made for."""
    summed = use.is_product and any(f.axis is not None for f in use.features)
    return summed and use.zero_preserving and (use.from_data or of_parameters)


def feature_axes(program: Program, path: str) -> tuple[int, ...]:
    """Return the axes of a parameter that run along features of its input.

    Raises:
      ValueError: there are none, or its uses disagree.
    """
    uses = [use for use in program.uses_of(path) if counts(use)]
    found = {tuple(sorted({f.axis for f in use.features if f.axis is not None})) for use in uses}
    if not found:
        raise ValueError(
            f"{path!r} has no axis of input features: {_why(program, path)}. "
            "Exclude it with where=graph.where()."
        )
    if len(found) > 1:
        raise ValueError(
            f"{path!r} is used along different axes: {sorted(found)}. "
            "Choose one and pass it as the pattern's axis."
        )
    for use in uses:
        for factor in use.features:
            if abs(factor.stride) != 1 and not _continued(use, factor):
                raise ValueError(
                    f"{path!r}: consecutive weights along axis {factor.axis} belong to different "
                    f"inputs (they are {abs(factor.stride)} apart at {use.primitive} {use.site}). "
                    "Exclude it with where=."
                )
    return found.pop()


def _continued(use: WeightUse, factor: Any) -> bool:
    """Whether a finer factor of the axis is a feature, too."""
    finer = [
        f for f in use.features if f.axis == factor.axis and abs(f.stride) < abs(factor.stride)
    ]
    return any(abs(f.stride) == 1 for f in finer)


def _why(program: Program, path: str) -> str:
    uses = program.uses_of(path)
    reasons = [f"{e.primitive} {e.site}: {e.reason}" for e in program.skipped if e.path == path]
    reasons += [_reason(use) for use in uses]
    return "; ".join(dict.fromkeys(reasons)) or "it is not used"


def _reason(use: WeightUse) -> str:
    if not use.is_product:
        return f"{use.primitive} sums over none of its axes"
    if not use.zero_preserving:
        return f"a zero of it is no zero in {use.primitive}"
    if not use.from_data:
        return f"{use.primitive} multiplies it with another parameter"
    return f"{use.primitive} sums over experts only"


def layer_axis(program: Program, path: str) -> int | None:
    """Return the axis along which a parameter stacks the weights of layers, or None.

    A scan slices it, or each use takes one index of it.
    """
    uses = program.uses_of(path)
    found = {_stack(use) for use in uses if counts(use)} or {_stack(use) for use in uses}
    return found.pop() if len(found) == 1 else None


def _stack(use: WeightUse) -> int | None:
    if use.layers or not use.indexed:
        return use.layer
    return use.indexed[0].axis


def exactly(path: str) -> str:
    """Return the regular expression that is found in one path alone."""
    return f"^{re.escape(path)}$"
