"""Matrix products and convolutions: which dimension of which operand does what."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxprune.graph.uses import Operand

Keep = Sequence[int | None]


class Flow(NamedTuple):
    """The dimensions of an equation with two operands.

    Attributes:
      roles: of each operand's dimensions, if it were the weight; None where none is understood.
      kept: for each operand, which of its dimensions each dimension of the result is.
    """

    roles: tuple[Operand | None, Operand | None]
    kept: tuple[Keep, Keep]


def _rest(rank: int, *taken: Sequence[int]) -> list[int]:
    return [d for d in range(rank) if not any(d in some for some in taken)]


def dot_general(eqn: Any) -> Flow:
    """Return the dimensions of a matrix product."""
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    ranks = [len(v.aval.shape) for v in eqn.invars]
    lf, rf = _rest(ranks[0], lc, lb), _rest(ranks[1], rc, rb)
    left = Operand(lc, lf, lb, lc, rc)
    right = Operand(rc, rf, rb, rc, lc)
    kept = [*lb, *lf, *[None] * len(rf)], [*rb, *[None] * len(lf), *rf]
    return Flow((left, right), kept)


def ragged_dot_general(eqn: Any) -> Flow:
    """Return the dimensions of a product whose rows choose a member of the weight."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (lc, rc), (lb, rb) = numbers.dot_dimension_numbers
    group = numbers.rhs_group_dimensions
    ranks = [len(v.aval.shape) for v in eqn.invars]
    lf, rf = _rest(ranks[0], lc, lb), _rest(ranks[1], rc, rb, group)
    if len(group) != 1:  # the rows that are summed over, or the batch, are ragged
        rank = len(eqn.outvars[0].aval.shape)
        return Flow((None, None), ([None] * rank, [None] * rank))
    right = Operand(rc, rf, [*rb, *group], rc, lc)
    kept = [*lb, *lf, *[None] * len(rf)], [*rb, *[None] * len(lf), *rf]
    return Flow((None, right), kept)


def conv_general_dilated(eqn: Any) -> Flow:
    """Return the dimensions of a convolution."""
    numbers = eqn.params["dimension_numbers"]
    out, inside, *window = numbers.rhs_spec
    image, feature, *space = numbers.lhs_spec
    right = Operand([inside, *window], [out], [], [inside], [feature, *space])
    rank = len(numbers.out_spec)
    batch = [image if d == numbers.out_spec[0] else None for d in range(rank)]
    if eqn.params["batch_group_count"] != 1:
        return Flow((None, None), ([None] * rank, [None] * rank))
    return Flow((None, right), (batch, [None] * rank))


FLOWS: dict[str, Callable[[Any], Flow]] = {
    "dot_general": dot_general,
    "ragged_dot_general": ragged_dot_general,
    "conv_general_dilated": conv_general_dilated,
}
