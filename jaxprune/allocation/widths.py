"""From layer densities to the widths of a smaller dense network (PreCrop, PreConfig)."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

from jaxprune._core import paths
from jaxprune.allocation.precrop import precrop
from jaxprune.types import Shapes


@dataclasses.dataclass(frozen=True)
class Widths:
    """A network cropped before training.

    Attributes:
      widths: units that each layer puts out, by path.
      shapes: the shapes of the cropped kernels, by path.
      density: share of the weights that is left: rounding and shared widths move it off the budget.
    """

    widths: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    density: float


def precrop_widths(
    shapes: Shapes,
    sparsity: float,
    *,
    follows: Mapping[str, str | None] | None = None,
    shared: Sequence[Collection[str]] = (),
    fixed: Collection[str] | None = None,
    costs: Mapping[str, float] | None = None,
    widen: bool = False,
) -> Widths:
    """Crop channels so that layers have the densities of `jaxprune.allocation.precrop`.

    Layer ``l`` keeps ``round(√density_l · width_l)`` of its units, at least one. Cropped on both
    sides, layers of like densities then have about ``density_l · n_l`` weights each; a layer whose
    input is kept whole has more, so compare the density that is returned with the one asked for.
    What is trained is a smaller dense network, from scratch; no weight is looked at.

    Args:
      shapes: ``{path: shape}`` of the kernels, the input on axis -2 and the output on axis -1, as
        in Flax. A path is one layer.
      sparsity: share of the weights (or of ``costs``) that is saved, in [0, 1).
      follows: by path, the layer whose output a layer reads, or None for the model's input. By
        default each layer follows the one before it. A layer that reads the flattened output of
        another has a multiple of its width on axis -2, and keeps the multiple.
      shared: groups of layers of one width, such as those that a residual connection adds up; the
        widest of them decides.
      fixed: layers whose width stays, by default the last: the classifier.
      costs: as in `jaxprune.allocation.precrop`.
      widen: let a density be above 1, and the layer become wider than it was (PreConfig).

    Returns:
      The widths, the cropped shapes and the density that they have.

    Raises:
      ValueError: a path that ``shapes`` does not have, or an input that is no multiple of the
        width of the layer that it follows.

    Example:
      >>> from jaxprune import allocation
      >>> shapes = {"one": (1, 64), "two": (64, 64), "three": (64, 256), "last": (256, 10)}
      >>> cropped = allocation.precrop_widths(shapes, 0.75)
      >>> cropped.widths
      {'one': 64, 'two': 44, 'three': 87, 'last': 10}
      >>> cropped.shapes["last"], round(cropped.density, 3)
      ((87, 10), 0.328)

    Reference:
      Cai et al., Structured pruning of CNNs at initialization, arXiv:2203.02549.
    """
    order = list(shapes)
    follows = dict(zip(order, [None, *order[:-1]], strict=True)) if follows is None else follows
    fixed = order[-1:] if fixed is None else fixed
    named = [*follows, *(p for p in follows.values() if p is not None), *fixed]
    _check_known(shapes, [*named, *(path for group in shared for path in group)])
    densities = _densities(shapes, sparsity, costs, widen)
    widths = {
        path: shape[-1] if path in fixed else max(1, round(math.sqrt(densities[path]) * shape[-1]))
        for path, shape in shapes.items()
    }
    for group in shared:
        widths |= dict.fromkeys(group, max(widths[path] for path in group))
    cropped = {path: _cropped(path, shapes, widths, follows.get(path)) for path in shapes}
    whole, left = (sum(math.prod(s) for s in which.values()) for which in (shapes, cropped))
    return Widths(widths, cropped, left / whole)


def _densities(
    shapes: Shapes, sparsity: float, costs: Mapping[str, float] | None, widen: bool
) -> dict[str, float]:
    densities = precrop(costs=costs)(shapes, sparsity)
    if not widen:
        return densities
    cost = {p: float(costs[p] if costs else math.prod(s)) for p, s in shapes.items()}
    even = (1.0 - sparsity) * math.fsum(cost.values()) / len(cost)
    return {path: even / value for path, value in cost.items()}


def _cropped(
    path: str, shapes: Shapes, widths: Mapping[str, int], source: str | None
) -> tuple[int, ...]:
    *window, inputs, outputs = shapes[path]
    del outputs
    if source is not None:
        times, rest = divmod(inputs, shapes[source][-1])
        # A depthwise kernel reads one channel: its input axis has length 1 at any width.
        if inputs != 1:
            if rest:
                raise ValueError(
                    f"{path!r} of shape {shapes[path]} reads {inputs} inputs, which is not a "
                    f"multiple of the width {shapes[source][-1]} of {source!r}. Say in follows= "
                    "which layer it reads."
                )
            inputs = times * widths[source]
    return (*window, inputs, widths[path])


def _check_known(shapes: Shapes, named: Collection[str]) -> None:
    unknown = dict.fromkeys(path for path in named if path not in shapes)
    if unknown:
        raise ValueError(
            f"follows, shared or fixed names {paths.listed(map(repr, unknown))}, which shapes does "
            f"not have; it has {paths.listed(map(repr, shapes))}."
        )
