"""A summary as a table for the terminal."""

from rich import filesize
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxprune.analysis._rows import Row, Summary

_LIMIT = 400


def print_summary(summary: Summary) -> None:
    """Print a summary. In a terminal the paths are folded to its width; a log gets all of it."""
    console = Console()
    table = as_table(summary)
    if not console.is_terminal:
        needed = Console(width=_LIMIT).measure(table).maximum
        console = Console(width=max(console.width, needed))
    console.print(table)


def as_table(summary: Summary) -> Table:
    """Return a line for each weight, then the totals."""
    with_pattern = any(row.pattern for row in summary.rows)
    table = Table(header_style="bold", show_edge=False)
    table.add_column("weight", overflow="fold")
    table.add_column("shape", no_wrap=True)
    for name in ("kept", "of", "sparsity"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("pattern holds" if with_pattern else "zeros exact", no_wrap=True)
    for name in ("dense", "compressed"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary.rows:
        table.add_row(*_cells(row))
    table.add_section()
    table.add_row(*_cells(summary.total), style="bold")
    if summary.unprunable.size:
        table.add_row(*_cells(summary.unprunable))
        table.add_row(*_cells(summary.model))
    return table


def _cells(row: Row) -> list[str | Text]:
    return [
        Text(row.path),  # a path is no markup
        " × ".join(map(str, row.shape)),
        f"{row.kept:,}",
        f"{row.size:,}",
        f"{row.sparsity:.2%}",
        _verdict(row),
        filesize.decimal(row.dense_bytes),
        filesize.decimal(row.compressed_bytes),
    ]


def _verdict(row: Row) -> Text:
    if row.holds is None:
        return Text(row.pattern)
    reason = f": {row.nonzero:,} not zero" if row.nonzero and not row.holds else ""
    word = "yes" if row.holds else f"no{reason}"
    return Text(f"{row.pattern} {word}".strip(), style="green" if row.holds else "bold red")
