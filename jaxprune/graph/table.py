"""A graph as a table for the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxprune.graph.factors import Factor
from jaxprune.graph.uses import Skipped, WeightUse

_LIMIT = 400


def show(table: Table) -> None:
    """Print a table. In a terminal it is folded to its width; a log gets all of it."""
    console = Console()
    if not console.is_terminal:
        needed = Console(width=_LIMIT).measure(table).maximum
        console = Console(width=max(console.width, needed))
    console.print(table)


def print_uses(
    shapes: Mapping[str, tuple[int, ...]],
    uses: Sequence[WeightUse],
    skipped: Sequence[Skipped],
) -> None:
    """Print a line for each use, and what was skipped."""
    show(_uses_table(shapes, uses))
    if skipped:
        show(_skipped_table(skipped))


def _uses_table(shapes: Mapping[str, tuple[int, ...]], uses: Sequence[WeightUse]) -> Table:
    table = Table(header_style="bold", show_edge=False)
    table.add_column("weight", overflow="fold")
    for name in ("shape", "used by", "contracted", "free", "batch", "layer", "runs"):
        table.add_column(name, no_wrap=True)
    table.add_column("on the way", overflow="fold")
    for (path, *cells), count in _counted([_cells(shapes, use) for use in uses]).items():
        times = "" if count == 1 else f" ({count} times)"
        cells[1] += times
        # A path is no markup, and neither is `[heads]`.
        table.add_row(Text(path), *map(Text, cells))
    return table


def _counted(rows: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    counts: dict[tuple[str, ...], int] = {}
    for row in rows:
        counts[row] = counts.get(row, 0) + 1
    return counts


def _cells(shapes: Mapping[str, tuple[int, ...]], use: WeightUse) -> tuple[str, ...]:
    shape = shapes[use.path]
    groups = f" in {use.groups} groups" if use.groups > 1 else ""
    notes = [*dict.fromkeys(use.steps)]
    notes += ["a zero is lost"] if not use.zero_preserving else []
    notes += [f"with {path}" for path in use.derived_from]
    return (
        use.path,
        " × ".join(map(str, shape)),
        use.primitive + groups,
        *(_said(factors, shape) for factors in (use.contracted, use.free, use.batch)),
        ", ".join(map(str, use.layers)),
        " × ".join("?" if n is None else str(n) for n in use.loops),
        ", ".join(notes),
    )


def _said(factors: Sequence[Factor], shape: tuple[int, ...]) -> str:
    return ", ".join(_one(f, shape) for f in factors)


def _one(factor: Factor, shape: tuple[int, ...]) -> str:
    """Write an axis, with the part of it that is meant: ``axis[start:stop:step]``."""
    assert factor.axis is not None
    full = shape[factor.axis]
    if factor.size == full and abs(factor.stride) == 1:
        return str(factor.axis)
    if factor.start is None:
        return f"{factor.axis}[?]"
    stop = factor.start + factor.size * factor.stride
    step = "" if factor.stride == 1 else f":{factor.stride}"
    return f"{factor.axis}[{factor.start}:{stop}{step}]"


def _skipped_table(skipped: Sequence[Skipped]) -> Table:
    table = Table(header_style="bold", show_edge=False, title="not followed", title_justify="left")
    table.add_column("weight", overflow="fold")
    table.add_column("primitive", no_wrap=True)
    table.add_column("why", overflow="fold")
    for entry in dict.fromkeys((e.path, e.primitive, e.reason) for e in skipped):
        table.add_row(*map(Text, entry))
    return table
