"""What a use claims, tried out: a channel of the weight is a channel of the activation.

The evaluator here is written apart from the library's: scans are unrolled, nothing else is entered
that holds a weight's use.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.graph import Graph, WeightUse, _jax
from jaxprune.graph.factors import Dim

Edit = Callable[[Any, Any, list[Any]], list[Any]]


def run(body: _jax.Body, args: Sequence[Any], edit: Edit, site: tuple[Any, ...] = ()) -> list[Any]:
    """Evaluate a jaxpr; `edit` may change the operands of each equation."""
    values = dict(zip(body.jaxpr.constvars, body.consts, strict=True))
    values.update(zip(body.jaxpr.invars, args, strict=True))

    def read(v: Any) -> Any:
        return v.val if _jax.is_literal(v) else values[v]

    for index, eqn in enumerate(body.jaxpr.eqns):
        here, operands = (*site, index), [read(v) for v in eqn.invars]
        inner = _jax.called(eqn)
        if inner is not None:
            out = run(inner, operands, edit, here)
        elif eqn.primitive.name == "scan":
            out = _unrolled(eqn, operands, edit, here)
        else:
            out = _jax.bind(eqn, edit(here, eqn, operands))
        values.update(zip(eqn.outvars, out, strict=True))
    return [read(v) for v in body.jaxpr.outvars]


def _unrolled(eqn: Any, operands: list[Any], edit: Edit, site: Any) -> list[Any]:
    scan = _jax.scan_of(eqn)
    first = scan.consts + scan.carries
    carry, rows = operands[scan.consts : first], []
    turns = range(scan.length)
    for i in reversed(turns) if scan.reverse else turns:
        args = [*operands[: scan.consts], *carry, *(x[i] for x in operands[first:])]
        out = run(scan.body, args, edit, site)
        carry = out[: scan.carries]
        rows.append(out[scan.carries :])
    rows = rows[::-1] if scan.reverse else rows
    return [*carry, *(jnp.stack(column) for column in zip(*rows, strict=True))]


def positions(dim: Dim) -> dict[int, np.ndarray]:
    """For each place along a dimension, the index on each axis of the parameter."""
    sizes = [f.size for f in dim]
    digits = np.unravel_index(np.arange(math.prod(sizes)), sizes) if dim else ()
    found: dict[int, np.ndarray] = {}
    for factor, digit in zip(dim, digits, strict=True):
        at = (factor.start or 0) + digit * factor.stride
        found[factor.axis] = found.get(factor.axis, 0) + at
    return found


def channel_of_input(use: WeightUse, eqn: Any, chosen: Mapping[int, int]) -> np.ndarray:
    """A mask of the other operand: False where its channel is the chosen one."""
    other = eqn.invars[1 - use.operand].aval.shape
    index = {axis: np.zeros((1,) * len(other), int) for axis in chosen}
    known = np.ones(other, bool)  # where the part of the weight stands
    for mine, theirs in _pairs(use, eqn):
        length = other[theirs] // use.groups
        shape = [1] * len(other)
        shape[theirs] = other[theirs]
        offset, size = use.piece.offsets[mine], use.piece.sizes[mine]
        inside = np.zeros(length, bool)
        inside[offset : offset + size] = True
        known &= np.tile(inside, use.groups).reshape(shape)
        for axis, at in positions(use.piece.dims[mine]).items():
            if axis in chosen:
                full = np.zeros(length, int)
                full[offset : offset + size] = at
                index[axis] = index[axis] + np.tile(full, use.groups).reshape(shape)
    for axis, place in chosen.items():
        known = known & (index[axis] == place)
    return ~known


def _pairs(use: WeightUse, eqn: Any) -> list[tuple[int, int]]:
    if use.primitive == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        return [(numbers.rhs_spec[1], numbers.lhs_spec[1])]
    numbers = eqn.params.get("dimension_numbers")
    if numbers is None:
        numbers = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    sides = [(*numbers[0][i], *numbers[1][i]) for i in (use.operand, 1 - use.operand)]
    return list(zip(*sides, strict=True))


class Trial:
    """A model, run with channels of weights or of their inputs set to zero."""

    def __init__(self, graph: Graph, leaves: Mapping[str, Any], inputs: Sequence[Any]):
        self.graph, self.leaves, self.inputs = graph, leaves, inputs
        self.products = [use for use in graph.uses if use.features]
        self.equations = graph.program.equations()
        self.outputs = jax.jit(self._outputs)

    def _outputs(self, leaves: list[Any], masks: list[Any]) -> list[Any]:
        def edit(site: Any, eqn: Any, operands: list[Any]) -> list[Any]:
            operands = list(operands)
            for use, mask in zip(self.products, masks, strict=True):
                if use.site == site:
                    x = operands[1 - use.operand]
                    operands[1 - use.operand] = jnp.where(mask, x, jnp.zeros((), x.dtype))
            return operands

        return run(self.graph.program.body, [*leaves, *self.inputs], edit)

    def together(self, path: str) -> list[str]:
        """The weights that are joined with one in some equation, itself included."""
        sites = {(use.site, use.operand) for use in self.products if use.path == path}
        same = [use.path for use in self.products if (use.site, use.operand) in sites]
        return [path for path in same if path in self.graph.where().chosen]

    def of_weights(self, channels: Mapping[str, Mapping[int, int]]) -> list[Any]:
        """Outputs with channels of weights zero; `channels` is `{path: {axis: index}}`."""
        changed = []
        for path, leaf in self.leaves.items():
            array = np.array(leaf)
            if path in channels:
                array[tuple(channels[path].get(axis, slice(None)) for axis in range(leaf.ndim))] = 0
            changed.append(array)
        return self.outputs(changed, self._masks({}))

    def of_inputs(self, channels: Mapping[str, Mapping[int, int]]) -> list[Any]:
        """Outputs with the same channels of those weights' inputs zero."""
        return self.outputs([np.array(x) for x in self.leaves.values()], self._masks(channels))

    def _masks(self, channels: Mapping[str, Mapping[int, int]]) -> list[Any]:
        masks = []
        for use in self.products:
            eqn = self.equations[use.site]
            shape = eqn.invars[1 - use.operand].aval.shape
            if use.path in channels:
                masks.append(channel_of_input(use, eqn, channels[use.path]))
            else:
                masks.append(np.ones(shape, bool))
        return masks
