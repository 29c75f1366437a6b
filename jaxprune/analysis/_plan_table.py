"""A plan as a table for the terminal."""

from rich import filesize
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxprune.analysis._plan_rows import Plan, PlanRow

_LIMIT = 400
_UNITS = ("", "k", "M", "G", "T", "P", "E", "Z")


def print_plan(plan: Plan) -> None:
    """Print a plan: a line for each weight, the run as a whole, and what is assumed."""
    console = Console()
    table = as_table(plan)
    if not console.is_terminal:
        needed = Console(width=_LIMIT).measure(table).maximum
        console = Console(width=max(console.width, needed))
    console.print(table)
    for line in (*_sentences(plan), *plan.notes):
        console.print(Text(line))


def as_table(plan: Plan) -> Table:
    """Return a line for each weight, then the sums."""
    table = Table(header_style="bold", show_edge=False)
    table.add_column("weight", overflow="fold")
    table.add_column("shape", no_wrap=True)
    if plan.mesh:
        table.add_column("split by", no_wrap=True)
    for name in ("kept", "sparsity", "weights", "masks", "method", "optimizer"):
        table.add_column(name, justify="right", no_wrap=True)
    if plan.model.training_flops is not None:
        for name in ("FLOPs dense", "sparse"):
            table.add_column(name, justify="right", no_wrap=True)
    for row in plan.rows:
        table.add_row(*_cells(plan, row))
    table.add_section()
    table.add_row(*_cells(plan, plan.total), style="bold")
    for row in (plan.unprunable, plan.rest):
        if row.bytes or row.training_flops:
            table.add_row(*_cells(plan, row))
    table.add_row(*_cells(plan, plan.model), style="bold")
    return table


def _cells(plan: Plan, row: PlanRow) -> list[str | Text]:
    sizes = (row.weight_bytes, row.mask_bytes, row.method_bytes, row.optimizer_bytes)
    flops = (row.training_flops, row.sparse_training_flops)
    return [
        Text(row.path),  # a path is no markup
        " × ".join(map(str, row.shape)),
        *([Text(row.split)] if plan.mesh else []),
        "by score" if row.kept is None else f"{row.kept:,}",
        "by score" if row.sparsity is None else f"{row.sparsity:.2%}",
        *(filesize.decimal(size) for size in sizes),
        *(short(n) for n in flops if plan.model.training_flops is not None),
    ]


def _sentences(plan: Plan) -> list[str]:
    model = plan.model
    mesh = ", ".join(f"{name} {length}" for name, length in plan.mesh.items())
    where = f"each device of the mesh ({mesh})" if mesh else "one device"
    lines = [f"{filesize.decimal(model.bytes)} on {where}."]
    if plan.steps is not None and model.mean_kept is not None:
        share = model.mean_kept / model.size
        lines.append(
            f"{plan.steps:,} steps see {short(model.mean_kept)} of {short(model.size)} parameters "
            f"on average ({share:.1%})."
        )
    dense, sparse = plan.run_flops, plan.sparse_run_flops
    if dense and sparse is not None:
        lines.append(
            f"They take {short(dense)} training FLOPs dense, {short(sparse)} sparse "
            f"({sparse / dense:.1%})."
        )
    return lines


def short(count: float | None) -> str:
    """Return a count in four digits and a unit."""
    if count is None:
        return ""
    for unit in _UNITS[:-1]:
        if count < 1000:
            return f"{count:.4g} {unit}".rstrip()
        count /= 1000
    return f"{count:.4g} {_UNITS[-1]}"
