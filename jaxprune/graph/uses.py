"""Where the program consumes a weight, and in which of its axes."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxprune.graph.factors import Dim, Factor, Piece, merged
from jaxprune.graph.values import Site

PRODUCTS = frozenset({"dot_general", "ragged_dot_general", "conv_general_dilated"})
"""Primitives that sum products of an input and a weight."""


class Skipped(NamedTuple):
    """A parameter that could not be followed, or not into this equation.

    Attributes:
      path: of the parameter.
      primitive: the equation's.
      site: where it stands.
      reason: a sentence.
    """

    path: str
    primitive: str
    site: Site
    reason: str


class Operand(NamedTuple):
    """The dimensions of a weight's operand by their part in the equation."""

    contracted: Sequence[int]
    free: Sequence[int]
    batch: Sequence[int]
    features: Sequence[int]  # those of `contracted` that run along features of the input
    partners: Sequence[int] = ()  # dimensions of the input that `contracted` is multiplied with


@dataclasses.dataclass(frozen=True)
class WeightUse:
    """One equation that consumes a parameter, or a part of it.

    The factors of ``contracted``, ``free`` and ``batch`` count along the parameter's own axes; the
    properties with the same names and ``_axes`` are enough where whole axes are meant.

    Attributes:
      path: of the parameter.
      primitive: of the equation.
      site: index of the equation at each level of calls, the outermost first.
      operand: which operand of the equation the weight is.
      contracted: what the equation sums over.
      free: what stays in the result as the weight's own.
      batch: what input, weight and result share: experts, and every axis of elementwise work.
      features: the part of ``contracted`` that runs along features of the input: not the window
        of a convolution, not an axis of experts of which a one-hot vector chooses.
      layers: axes that enclosing scans slice, the outermost first.
      indexed: axes of which the use takes one index, ``w[i]``; its start is the index.
      loops: how often each enclosing loop runs; None if only the data says.
      groups: feature groups of a convolution.
      steps: primitives on the way from the parameter.
      input: number of the other operand; uses of one input share it. None for elementwise work.
      from_data: the other operand depends on data, not on parameters alone.
      trains_input: the other operand depends on parameters, so that training needs its gradient.
      zero_preserving: a zero in the parameter is a zero in the equation.
      derived_from: other parameters that the consumed values are computed from.
      certain: the operand is these weights in every run, not now these and now others.
    """

    path: str
    primitive: str
    site: Site
    operand: int
    contracted: tuple[Factor, ...]
    free: tuple[Factor, ...]
    batch: tuple[Factor, ...]
    features: tuple[Factor, ...] = ()
    layers: tuple[int, ...] = ()
    indexed: tuple[Factor, ...] = ()
    loops: tuple[int | None, ...] = ()
    groups: int = 1
    steps: tuple[str, ...] = ()
    input: int | None = None
    from_data: bool = True
    trains_input: bool = False
    zero_preserving: bool = True
    derived_from: tuple[str, ...] = ()
    certain: bool = True
    control: Site = dataclasses.field(default=(), repr=False)
    piece: Piece | None = dataclasses.field(default=None, repr=False, compare=False)
    marks: tuple[Piece, ...] = dataclasses.field(default=(), repr=False, compare=False)
    one_hot: frozenset[int] = dataclasses.field(default=frozenset(), repr=False)

    @property
    def contracted_axes(self) -> tuple[int, ...]:
        """Axes of the parameter that are contracted as a whole."""
        return self._only(self.contracted, self.free, self.batch)

    @property
    def free_axes(self) -> tuple[int, ...]:
        """Axes of the parameter that are free as a whole."""
        return self._only(self.free, self.contracted, self.batch)

    @property
    def batch_axes(self) -> tuple[int, ...]:
        """Axes of the parameter that are batched as a whole."""
        return self._only(self.batch, self.contracted, self.free)

    @property
    def layer(self) -> int | None:
        """The axis that the outermost enclosing scan slices, or None."""
        return self.layers[0] if self.layers else None

    @property
    def is_product(self) -> bool:
        """Whether the equation is a matrix product or a convolution."""
        return self.primitive in PRODUCTS and bool(self.contracted)

    def _only(self, mine: tuple[Factor, ...], *others: tuple[Factor, ...]) -> tuple[int, ...]:
        taken = {f.axis for other in others for f in other} | set(self.layers)
        taken |= {f.axis for f in self.indexed}
        return tuple(sorted({f.axis for f in mine if f.axis is not None} - taken))


def use_of(
    piece: Piece, eqn: Any, site: Site, operand: int, roles: Operand, **more: Any
) -> WeightUse:
    """Return the use of a piece that is an operand of an equation.

    Args:
      piece: the weights, as the operand holds them.
      eqn: the equation.
      site: where it stands.
      operand: which operand.
      roles: the operand's dimensions by their part in the equation.
      **more: the other fields of `WeightUse`.
    """

    def factors(dims: Sequence[int]) -> tuple[Factor, ...]:
        found: list[Factor] = [f for d in dims for f in _real(piece.dims[d])]
        return tuple(sorted(found, key=lambda f: (f.axis, -abs(f.stride))))

    return WeightUse(
        path=piece.path,
        primitive=eqn.primitive.name,
        site=site,
        operand=operand,
        contracted=factors(roles.contracted),
        free=factors(roles.free),
        batch=factors(roles.batch),
        features=factors(roles.features),
        layers=piece.layers,
        indexed=tuple(f for f in piece.fixed if f.axis not in piece.layers),
        steps=piece.steps,
        derived_from=piece.mixed,
        certain=piece.certain,
        zero_preserving=piece.zero_preserving,
        piece=piece,
        **more,
    )


def _real(dim: Dim) -> Dim:
    return tuple(f for f in merged(dim) if f.axis is not None)
