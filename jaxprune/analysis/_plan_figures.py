"""Counts over a run, bytes on a device and operations of a step, from the shapes of a state."""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune._core import paths
from jaxprune._core.packing import is_packed
from jaxprune.analysis._placement import Placement
from jaxprune.graph import Graph
from jaxprune.transforms import State

NO_PARAMETER = ""
"""The owner of what belongs to no parameter."""


class Count(NamedTuple):
    """Weights of one parameter over a run."""

    kept: float  # that the loss sees after the last step
    seen: float  # that the loss sees, on average
    graded: float  # whose own gradient the method looks at, on average
    certain: bool  # False if the run divides what is known in total


class Bytes(NamedTuple):
    """Bytes on one device that belong to one parameter."""

    masks: int = 0
    method: int = 0
    optimizer: int = 0


class Flops(NamedTuple):
    """Operations of a training step."""

    dense: float | None  # None without a graph
    sparse: float | None  # on average; None too if nothing says what is kept


def mask_shapes(state: State) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight that has a mask, in tree order."""
    leaves = paths.flatten(state.masks, is_packed)
    return {path: _shape_of(leaf) for path, leaf in leaves.items()}


def packed_paths(state: State) -> list[str]:
    """Return the weights whose masks are packed."""
    leaves = paths.flatten(state.masks, is_packed)
    return [path for path, leaf in leaves.items() if is_packed(leaf)]


def counts_of(state: State, steps: int | None) -> tuple[dict[str, Count], str]:
    """Count weights over the steps of a run; say what only the run will tell.

    Without steps the averages are those of the last stage.
    """
    course = state.method.course
    if course is None:
        return {}, (
            f"{state.method.name} does not say how many weights it keeps: pass course= to its "
            "transforms.Method."
        )
    stages = course.stages(mask_shapes(state), steps)
    last = len(stages.first) - 1
    shares = np.zeros(last + 1)
    if steps is None:
        shares[last] = 1.0
    else:
        last = int(np.searchsorted(stages.first, steps, side="right")) - 1
        ends = np.minimum([*stages.first[1:], steps], steps)
        shares = np.maximum(ends - stages.first, 0) / steps
    counts = {
        path: Count(
            kept=float(seen[last]),
            seen=float(shares @ seen),
            graded=float(shares @ stages.graded[path]),
            certain=not stages.loose,
        )
        for path, seen in stages.seen.items()
    }
    return counts, stages.loose


def bytes_of(opt_state: Any, weights: Mapping[str, Any], placement: Placement) -> dict[str, Bytes]:
    """Return the bytes of a state on one device, by the parameter that they belong to."""
    found: dict[str, Bytes] = {}
    for kind, part in _parts(opt_state):
        leaves, _ = jax.tree_util.tree_flatten_with_path(part, is_leaf=is_packed)
        for key_path, leaf in leaves:
            owner = paths.owner_of(paths.path_of(key_path), _shape_of(leaf), weights)
            size = _size(leaf) // (1 if owner is None else placement.shards(owner))
            before = found.setdefault(owner or NO_PARAMETER, Bytes())
            found[owner or NO_PARAMETER] = before._replace(**{kind: getattr(before, kind) + size})
    return found


def _parts(opt_state: Any) -> Iterator[tuple[str, Any]]:
    """Cut a state into what is for masks, for the method, and for the optimizers."""
    nodes, _ = jax.tree_util.tree_flatten_with_path(
        opt_state, is_leaf=lambda node: isinstance(node, State)
    )
    for key_path, node in nodes:
        if isinstance(node, State):
            yield "masks", node.masks
            yield "method", (node.step, node.health, node.fingerprint, node.extra)
            yield "optimizer", node.inner_state
        else:
            yield "optimizer", {paths.path_of(key_path): node}


def _shape_of(leaf: Any) -> tuple[int, ...]:
    return (*leaf.bits.shape[:-1], leaf.size) if is_packed(leaf) else tuple(leaf.shape)


def _size(leaf: Any) -> int:
    array = leaf.bits if is_packed(leaf) else leaf
    return math.prod(array.shape) * array.dtype.itemsize


def flops_of(
    graph: Graph,
    weights: Mapping[str, Any],
    prunable: Collection[str],
    counts: Mapping[str, Count],
) -> dict[str, Flops]:
    """Return the operations of a training step by parameter, as a graph counts them."""
    shapes = {path: tuple(weight.shape) for path, weight in weights.items()}
    different = [p for p in {**shapes, **graph.shapes} if shapes.get(p) != graph.shapes.get(p)]
    if different:
        raise ValueError(
            f"graph was traced with other parameters: {paths.listed(different)} are not in both, "
            "or have other shapes. Trace the function with the tree that is planned."
        )
    cost = graph.cost()
    found = {NO_PARAMETER: Flops(*[cost.activations.training_flops] * 2)}
    for row in cost.rows:
        own = min(row.flops, row.training_flops - row.flops)  # of the weight's own gradient
        sparse: float | None = row.training_flops
        if row.path in prunable:
            size, count = math.prod(shapes[row.path]), counts.get(row.path)
            sparse = count and ((sparse - own) * count.seen + own * count.graded) / size
        found[row.path] = Flops(row.training_flops, sparse)
    return found
