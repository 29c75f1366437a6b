"""What will a run take? Sparsity, memory and operations, before anything is allocated."""

import dataclasses
import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import optax

from jaxprune._core import paths
from jaxprune.analysis._placement import (
    AnyMesh,
    Placement,
    Specs,
    check_packed,
    check_pattern,
    placement_of,
)
from jaxprune.analysis._plan_figures import (
    NO_PARAMETER,
    Bytes,
    Count,
    Flops,
    bytes_of,
    counts_of,
    flops_of,
    mask_shapes,
    packed_paths,
)
from jaxprune.analysis._plan_rows import Plan, PlanRow, together
from jaxprune.analysis._plan_table import print_plan
from jaxprune.analysis._rows import share
from jaxprune.graph import Graph
from jaxprune.patterns import Unstructured
from jaxprune.transforms import State
from jaxprune.transforms._state import find_states
from jaxprune.types import Tree


def plan(
    params: Tree,
    tx: optax.GradientTransformation,
    *,
    mesh: AnyMesh | None = None,
    specs: Specs | None = None,
    graph: Graph | None = None,
    steps: int | None = None,
    print_table: bool = True,
) -> Plan:
    """Estimate what a run will take, from shapes alone, and print it as a table.

    Nothing is allocated or compiled: ``tx.init`` is traced.

    - Sparsity: the counts that the transform itself will use.
    - Bytes on one device: of the arrays, without gradients, activations and the padding of a TPU's
      tiles. A leaf of the optimizer's state that has a weight's name and shape is split as that
      weight, as masks are; all others are whole on every device.
    - FLOPs of a training step, as `jaxprune.graph.Graph.cost` counts them: the forward pass and the
      gradient of the inputs with the weights that the loss sees, the weights' own gradients where
      the method looks at them. RigL, say, looks at all of them in a step that changes masks.

    Args:
      params: parameters in any container, or their ``jax.ShapeDtypeStruct``. If ``specs`` is None,
        leaves with a ``NamedSharding`` are split by it, all others whole on every device.
      tx: an optimizer that holds one or more jaxprune transforms, at any depth.
      mesh: the mesh, real or a ``jax.sharding.AbstractMesh`` without devices.
      specs: how the parameters are split: ``path -> PartitionSpec``, or a tree of them; None to
        read it from ``params``.
      graph: `jaxprune.trace` of the model or the loss, with the inputs of one step; without it
        there are no FLOPs.
      steps: calls of update in the run; None for as many as the schedule takes. Methods without an
        end have none, and averages are then those of their last stage.
      print_table: whether to print.

    Returns:
      The figures.

    Raises:
      ValueError: no jaxprune transform in ``tx``; a mesh axis that does not divide a parameter,
        cuts a group of N:M, a block, or a byte of a packed mask; a graph of another tree; or
        whatever ``tx.init`` refuses.
      TypeError: leaves that are no arrays, or specs that are none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> from jax.sharding import AbstractMesh, PartitionSpec
      >>> params = {"kernel": jax.ShapeDtypeStruct((1024, 512), jnp.float32)}
      >>> tx = jaxprune.rigl(optax.sgd(0.1, momentum=0.9), 0.9, end=7_500, packed=True)
      >>> figures = jaxprune.plan(
      ...     params,
      ...     tx,
      ...     mesh=AbstractMesh((4, 2), ("data", "model")),
      ...     specs=lambda path: PartitionSpec("data", "model"),
      ... )
      weight ┃ shape ┃ split by ┃ kept ┃ sparsity ┃ weights ┃ masks ┃ method ┃ optimizer
      ...
      kernel │ 1024 × 512 │ data × model │ 52,429 │ 90.00% │ 262.1 kB │ 8.2 kB │ 0 bytes │ 262.1 kB
      ...
      >>> figures.total.mask_bytes, figures.model.mean_kept
      (8192, 52429.0)
    """
    leaves = _arrays(params)
    placement = placement_of(leaves, mesh, specs)
    weights = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
    opt_state = jax.eval_shape(tx.init, paths.refill(params, weights))
    states = find_states(opt_state)
    for state in states:
        _check_fits(state, placement)
    steps = _steps(states, steps)
    counts, patterns, notes = {}, {}, []
    for state in states:
        found, loose = counts_of(state, steps)
        counts |= found
        patterns |= dict(_patterns(state))
        notes += [*([loose] if loose else []), *_schedule_notes(state, steps)]
    flops = None if graph is None else flops_of(graph, weights, patterns, counts)
    sizes = bytes_of(opt_state, weights, placement)
    sources = _Sources(weights, placement, patterns, counts, sizes, flops)
    result = sources.plan(steps, tuple(dict.fromkeys(notes)))
    if print_table:
        print_plan(result)
    return result


def _arrays(params: Tree) -> dict[str, Any]:
    leaves = paths.flatten(params)
    strange = [f"{p} ({type(x).__name__})" for p, x in leaves.items() if not hasattr(x, "dtype")]
    if strange or not leaves:
        raise TypeError(
            "params must hold arrays or jax.ShapeDtypeStruct and nothing else, got "
            f"{paths.listed(strange) or 'no leaf'}. Pass the arrays alone, as with "
            "eqx.filter(model, eqx.is_inexact_array) or nnx.state(model, nnx.Param)."
        )
    return leaves


def _check_fits(state: State, placement: Placement) -> None:
    """Raise if the mesh cuts what has to lie together on a device."""
    course = state.method.course
    for path, shape in mask_shapes(state).items():
        if course is not None and course.rule is not None:
            check_pattern(path, shape, course.rule, placement)
    for path in packed_paths(state):
        check_packed(path, mask_shapes(state)[path], placement)


def _steps(states: list[State], steps: int | None) -> int | None:
    """Return the calls of update: those given, else as many as all schedules take."""
    if steps is None:
        ends = [state.method.reached for state in states if state.method.reached is not None]
        return max(ends) + 1 if ends else None
    try:
        number = operator.index(steps)
    except TypeError:
        raise TypeError(
            f"steps must be an integer, the calls of update in the run, got {steps!r} of type "
            f"{type(steps).__name__}. Write int(...) around it."
        ) from None
    if number < 1:
        raise ValueError(f"steps must be 1 or more, the calls of update in the run, got {number}.")
    return number


def _patterns(state: State) -> Iterator[tuple[str, str]]:
    """Return the pattern of each prunable weight as text, empty where zeros may be anywhere."""
    course = state.method.course
    for path in mask_shapes(state):
        pattern = None if course is None or course.rule is None else course.rule.pattern_of(path)
        yield path, "" if pattern in (None, Unstructured()) else repr(pattern)


def _schedule_notes(state: State, steps: int | None) -> Iterator[str]:
    name, reached = state.method.name, state.method.reached
    if steps is None:
        yield (f"{name} has no end, and steps= is not given: averages are those of its last stage.")
    elif reached is not None and steps <= reached:
        yield (
            f"{name} ends at step {reached}, which {steps} calls of update do not reach: it takes "
            f"{reached + 1}."
        )


@dataclasses.dataclass(frozen=True)
class _Sources:
    """What the rows are made of, by path."""

    weights: Mapping[str, jax.ShapeDtypeStruct]
    placement: Placement
    patterns: Mapping[str, str]  # of the prunable weights
    counts: Mapping[str, Count]  # of those that a method counts
    sizes: Mapping[str, Bytes]
    flops: Mapping[str, Flops] | None

    def plan(self, steps: int | None, notes: tuple[str, ...]) -> Plan:
        rows = [self.row(path) for path in self.weights if path in self.patterns]
        others = [self.row(path) for path in self.weights if path not in self.patterns]
        rest = self.rest()
        kept = seen = None
        if self.counts.keys() == self.patterns.keys():
            kept = sum(count.kept for count in self.counts.values())
            seen = sum(count.seen for count in self.counts.values())
        dense = sum(row.size for row in others)
        whole = [None if n is None else n + dense for n in (kept, seen)]
        return Plan(
            rows=tuple(rows),
            total=together("total", rows, kept, seen),
            unprunable=together(f"not prunable ({len(others)})", others, dense, dense),
            rest=rest,
            model=together("whole model", [*rows, *others, rest], *whole),
            mesh=self.placement.mesh,
            steps=steps,
            notes=notes,
        )

    def row(self, path: str) -> PlanRow:
        weight = self.weights[path]
        size = math.prod(weight.shape)
        count = self.counts.get(path)
        if path not in self.patterns:
            count = Count(size, size, size, True)
        known = count is not None and count.certain
        kept = round(count.kept) if count is not None and known else None
        return dataclasses.replace(
            self._taken(path),
            shape=tuple(weight.shape),
            dtype=str(weight.dtype),
            split=self.placement.text(path),
            pattern=self.patterns.get(path, ""),
            size=size,
            kept=kept,
            sparsity=None if kept is None else share(size, kept),
            mean_kept=count.seen if count is not None and known else None,
            weight_bytes=size * weight.dtype.itemsize // self.placement.shards(path),
        )

    def rest(self) -> PlanRow:
        return self._taken(NO_PARAMETER)

    def _taken(self, path: str) -> PlanRow:
        """Return a row of no weights, with what is taken besides them."""
        sizes, flops = self.sizes.get(path, Bytes()), Flops(None, None)
        if self.flops is not None:
            flops = self.flops.get(path, Flops(0.0, 0.0))
        return PlanRow(
            path=path or "of no parameter",
            shape=(),
            dtype="",
            split="",
            pattern="",
            size=0,
            kept=0,
            sparsity=0.0,
            mean_kept=0.0,
            weight_bytes=0,
            mask_bytes=sizes.masks,
            method_bytes=sizes.method,
            optimizer_bytes=sizes.optimizer,
            training_flops=flops.dense,
            sparse_training_flops=flops.sparse,
        )
