"""Which statistics to take where, so that weights with one input share them."""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from jaxprune.graph.axes import counts
from jaxprune.graph.factors import Factor, Piece, merged
from jaxprune.graph.products import FLOWS
from jaxprune.graph.program import Program
from jaxprune.graph.uses import Skipped, WeightUse
from jaxprune.graph.values import Site


class Probe(NamedTuple):
    """One input whose statistics are taken.

    Attributes:
      use: a use that meets it, for the order of the features.
      eqn: its equation.
      stacked: the scans that stack the statistics.
    """

    use: WeightUse
    eqn: Any
    stacked: frozenset[Site]


class Parts(NamedTuple):
    """How the statistics of one weight are put together.

    Attributes:
      members: for each index of a stacked axis that is not scanned, the probes to add up. One
        entry if there is no such axis.
      is_stack: whether there is.
    """

    members: tuple[tuple[int, ...], ...]
    is_stack: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to take for which weights.

    Attributes:
      probes: by number.
      weights: how to put the statistics of each weight together, by path.
      skipped: weights without statistics, and why.
    """

    probes: tuple[Probe, ...]
    weights: dict[str, Parts]
    skipped: tuple[Skipped, ...]

    def sites(self) -> dict[Site, list[int]]:
        """Return the numbers of the probes of each equation."""
        found: dict[Site, list[int]] = {}
        for number, probe in enumerate(self.probes):
            found.setdefault(probe.use.site, []).append(number)
        return found


def plan_of(program: Program, chosen: Callable[[str], bool]) -> Plan:
    """Decide what to take for the weights that are chosen."""
    equations = program.equations()
    numbers: dict[Hashable, int] = {}
    probes: list[Probe] = []
    weights: dict[str, Parts] = {}
    skipped: list[Skipped] = []
    for path in filter(chosen, program.params):
        uses = [use for use in program.uses_of(path) if counts(use)]
        if not uses:
            continue
        why = _objection(program, uses, equations)
        if why is not None:
            use, reason = why
            skipped.append(Skipped(path, use.primitive, use.site, reason))
            continue
        members: dict[int | None, list[int]] = {}
        for use in uses:
            key = _key(use, equations[use.site])
            if key not in numbers:
                numbers[key] = len(probes)
                probes.append(Probe(use, equations[use.site], _stacked(use)))
            index = use.indexed[0].start if use.indexed else None
            at = members.setdefault(index, [])
            at += [] if numbers[key] in at else [numbers[key]]
        ordered = sorted(members, key=lambda index: -1 if index is None else index)
        parts = tuple(tuple(members[index]) for index in ordered)
        weights[path] = Parts(parts, is_stack=ordered != [None])
    return Plan(tuple(probes), weights, tuple(skipped))


def _stacked(use: WeightUse) -> frozenset[Site]:
    assert use.piece is not None
    return frozenset(use.piece.sliced_at)


def _key(use: WeightUse, eqn: Any) -> Hashable:
    """Return what two uses have in common if and only if they share their statistics."""
    assert use.piece is not None
    roles = FLOWS[use.primitive](eqn).roles[use.operand]
    assert roles is not None
    piece = use.piece
    pairs = zip(roles.contracted, roles.partners, strict=True)
    summed = tuple((theirs, _digits(piece, mine)) for mine, theirs in pairs)
    batch = tuple(_digits(piece, mine) for mine in roles.batch)
    if use.primitive == "dot_general":
        how: Hashable = tuple(eqn.params["dimension_numbers"][1][1 - use.operand])
    elif use.primitive == "conv_general_dilated":
        how = tuple(repr(item) for item in sorted(eqn.params.items()))
    else:
        how = eqn.invars[2]
    return use.input, use.primitive, use.control, _stacked(use), summed, batch, how, use.one_hot


def _digits(piece: Piece, dim: int) -> Hashable:
    return piece.offsets[dim], tuple((f.axis, f.stride, f.size) for f in merged(piece.dims[dim]))


def _objection(
    program: Program, uses: Sequence[WeightUse], equations: dict[Site, Any]
) -> tuple[WeightUse, str] | None:
    for use in uses:
        why = _of_one(program, use, equations[use.site])
        if why is not None:
            return use, why
    first = uses[0]
    if len({use.features for use in uses}) > 1:
        return first, "its uses have different input features"
    if len({(len(use.indexed), use.layers) for use in uses}) > 1:
        return first, "it is now a stack of layers and now not"
    indices = {use.indexed[0].start for use in uses if use.indexed}
    if indices and indices != set(range(program.params[first.path].shape[_axis(first)])):
        return first, "not all members of the stack are used"
    frees: dict[Hashable, set[tuple[Factor, ...]]] = {}
    for use in uses:
        frees.setdefault((use.input, use.indexed, use.control), set()).add(use.free)
    if len(set(map(frozenset, frees.values()))) > 1:
        return first, "parts of its outputs have inputs of their own"
    return None


def _axis(use: WeightUse) -> int:
    axis = use.indexed[0].axis
    assert axis is not None
    return axis


def _of_one(program: Program, use: WeightUse, eqn: Any) -> str | None:
    """Return why a use has no statistics, or None."""
    piece, shape = use.piece, program.params[use.path].shape
    assert piece is not None
    if not use.certain:
        return "a loop or a branch chooses among several weights"
    if "test" in use.site:
        return "it stands in the test of a loop"
    if any(f.start is None for f in use.indexed):
        return "which layer is used is known only when the program runs"
    if len(use.indexed) + bool(use.layers) > 1:
        return "several axes are indexed"
    roles = FLOWS[use.primitive](eqn).roles[use.operand]
    assert roles is not None
    sums = [*roles.contracted, *roles.batch]
    if any(f.axis is None for d in sums for f in piece.dims[d]):
        return "its values are repeated along the input's features"
    if any(f.stride < 0 for f in (*use.contracted, *use.batch)):
        return "its input features stand in reverse"
    if use.primitive != "dot_general" and not _fills(piece, eqn.invars[use.operand], sums):
        return "it is joined with other weights"
    if use.primitive == "ragged_dot_general":
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        if numbers.dot_dimension_numbers[1][0] or numbers.lhs_ragged_dimensions != (0,):
            return "its product is ragged and batched"
    covered = _extent([*use.contracted, *use.batch])
    if any(size != shape[axis] for axis, size in covered.items()):
        return "a part of its input features is used"
    return None


def _fills(piece: Piece, operand: Any, dims: Iterable[int]) -> bool:
    return all(piece.sizes[d] == operand.aval.shape[d] for d in dims)


def _extent(factors: Iterable[Factor]) -> dict[int, int]:
    """Return how much of each axis factors cover."""
    found: dict[int, int] = {}
    for factor in factors:
        if factor.axis is not None:
            found[factor.axis] = found.get(factor.axis, 1) * factor.size
    return found
