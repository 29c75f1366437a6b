"""``cost``: operations and bytes of a model, dense and sparse."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich import filesize
from rich.table import Table
from rich.text import Text

from jaxprune._core import paths
from jaxprune._core.packing import is_packed, unpack
from jaxprune.graph import _jax
from jaxprune.graph.flops import OPERATIONS
from jaxprune.graph.program import Program
from jaxprune.graph.table import show
from jaxprune.graph.uses import WeightUse
from jaxprune.graph.values import Site
from jaxprune.types import Tree

_ACTIVATIONS = "(activations)"


class Row(NamedTuple):
    """What a weight costs in one run of the function.

    Attributes:
      path: of the weight, or a name for a sum.
      density: share of the weight that is kept.
      flops: operations of the forward pass, dense.
      sparse_flops: those with kept weights.
      training_flops: of the forward pass and all gradients, dense.
      sparse_training_flops: those with kept weights, for the weight's own gradient too.
      weight_bytes: read of the weight, dense.
      sparse_weight_bytes: values of kept weights, without their indices.
      activation_bytes: of inputs read and results written.
    """

    path: str
    density: float
    flops: float
    sparse_flops: float
    training_flops: float
    sparse_training_flops: float
    weight_bytes: float
    sparse_weight_bytes: float
    activation_bytes: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """Operations and bytes of all matrix products and convolutions of a function.

    Work between them is not counted; in a transformer of width 256 it is 1% of the operations.
    Loops count as often as they run, the costliest branch of each conditional counts. What
    `jax.checkpoint` computes again is not counted.

    Attributes:
      rows: of each weight, in tree order.
      activations: of the products of two activations, as in attention.
      total: of all.
      unknown: loops whose length only the data says; they are counted once.
    """

    rows: tuple[Row, ...]
    activations: Row
    total: Row
    unknown: tuple[Site, ...]

    def table(self) -> None:
        """Print a line for each weight, and the total."""
        show(_table(self))


class _Product(NamedTuple):
    site: Site
    runs: int
    flops: int
    training: int
    bytes: tuple[int, ...]  # of both operands and the result


def cost_of(program: Program, masks: Tree | None) -> Cost:
    """Count what a function costs."""
    densities = _densities(program, masks)
    products = _costliest(_products(program), 0)
    at: dict[Site, list[WeightUse]] = {}
    for use in program.uses:
        at.setdefault(use.site, []).append(use)
    rows: dict[str, Row] = {}
    for product in products:
        for path, row in _shares(product, at.get(product.site, []), densities):
            rows[path] = _added(path, [rows[path], row]) if path in rows else row
    weights = tuple(rows[path] for path in program.params if path in rows)
    empty = Row(_ACTIVATIONS, 1.0, *[0.0] * 7)
    activations = rows.get(_ACTIVATIONS, empty)
    unknown = {site for site, _, loops in _jax.equations(program.body) if None in loops}
    loops = {site[:i] for site in unknown for i, word in enumerate(site) if word == "body"}
    total = _added("total", [*weights, activations])
    return Cost(weights, activations, total, tuple(sorted(loops, key=str)))


def _products(program: Program) -> list[_Product]:
    found = []
    for site, eqn, loops in _jax.equations(program.body):
        count = OPERATIONS.get(eqn.primitive.name)
        if count is None:
            continue
        flops = count(eqn)
        sizes = tuple(_bytes(v.aval) for v in (*eqn.invars[:2], *eqn.outvars))
        runs = math.prod(n or 1 for n in loops)
        training = flops * (1 + program.trained.get(site, 0))
        found.append(_Product(site, runs, flops, training, sizes))
    return found


def _bytes(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize


def _costliest(products: Iterable[_Product], start: int) -> list[_Product]:
    """Leave out all branches of a conditional but the one with the most operations."""
    kept: list[_Product] = []
    branches: dict[Site, dict[int | str, list[_Product]]] = {}
    for product in products:
        site = product.site
        words = [i for i in range(start, len(site)) if str(site[i]).startswith("branch")]
        if words:
            inside = branches.setdefault(site[: words[0]], {})
            inside.setdefault(site[words[0]], []).append(product)
        else:
            kept.append(product)
    for site, inside in branches.items():
        runs = [_costliest(some, len(site) + 1) for some in inside.values()]
        kept += max(runs, key=lambda some: sum(p.runs * p.flops for p in some))
    return kept


def _shares(
    product: _Product, uses: Sequence[WeightUse], densities: Mapping[str, float]
) -> list[tuple[str, Row]]:
    """Divide a product among the weights that are multiplied in it, by their size."""
    pieces = [(use.path, use.operand, math.prod(_sizes(use))) for use in uses]
    total = sum(size for _, _, size in pieces)
    if not total:
        moved = product.runs * sum(product.bytes)
        dense = product.runs * product.flops, product.runs * product.training
        return [(_ACTIVATIONS, _row(_ACTIVATIONS, 1.0, *dense, 0, moved))]
    operands = {operand for _, operand, _ in pieces}
    read = product.runs * sum(product.bytes[operand] for operand in operands)
    moved = product.runs * sum(product.bytes) - read
    found = []
    for path, _, size in pieces:
        share = size / total
        dense = share * product.runs * product.flops, share * product.runs * product.training
        row = _row(path, densities.get(path, 1.0), *dense, share * read, share * moved)
        found.append((path, row))
    return found


def _sizes(use: WeightUse) -> tuple[int, ...]:
    return () if use.piece is None else use.piece.sizes


def _row(
    path: str, density: float, flops: float, training: float, read: float, moved: float
) -> Row:
    return Row(
        path,
        density,
        flops,
        flops * density,
        training,
        training * density,
        read,
        read * density,
        moved,
    )


def _added(path: str, rows: Sequence[Row]) -> Row:
    sums = [sum(values) for values in zip(*(row[2:] for row in rows), strict=True)]
    weights, kept = sums[4], sums[5]
    return Row(path, kept / weights if weights else 1.0, *sums)


def _densities(program: Program, masks: Tree | None) -> dict[str, float]:
    if masks is None:
        return {}
    leaves = paths.flatten(jax.tree.map(unpack, masks, is_leaf=is_packed))
    unknown = [path for path in leaves if path not in program.params]
    if unknown:
        raise ValueError(
            f"masks has {paths.listed(unknown)}, which the graph does not have; it has "
            f"{paths.listed(program.params)}. Trace with the tree that was pruned."
        )
    for path, mask in leaves.items():
        shape = program.params[path].shape
        if mask.shape != shape or mask.dtype != np.bool_:
            raise ValueError(
                f"the mask of {path!r} has shape {mask.shape} and dtype {mask.dtype}; its "
                f"parameter has shape {shape}. Masks are boolean, True = kept."
            )
    return {path: float(np.mean(np.asarray(mask))) for path, mask in leaves.items()}


def _table(cost: Cost) -> Table:
    table = Table(header_style="bold", show_edge=False)
    table.add_column("weight", overflow="fold")
    names = ("density", "forward", "sparse", "training", "sparse", "weights", "activations")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in cost.rows:
        table.add_row(*_cells(row))
    if cost.activations.flops:
        table.add_row(*_cells(cost.activations))
    table.add_section()
    table.add_row(*_cells(cost.total), style="bold")
    return table


def _cells(row: Row) -> list[str | Text]:
    counts = (row.flops, row.sparse_flops, row.training_flops, row.sparse_training_flops)
    return [
        Text(row.path),
        f"{row.density:.2%}",
        *(f"{_short(n)}FLOP" for n in counts),
        filesize.decimal(round(row.weight_bytes)),
        filesize.decimal(round(row.activation_bytes)),
    ]


def _short(count: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} P"
