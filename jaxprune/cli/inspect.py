"""``jaxprune inspect``: what a folder of a pruned model holds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open

from jaxprune.cli import tables
from jaxprune.cli.folder import REPORT, read_json


def inspect(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")], /
) -> None:
    """Show the sparsity of every pruned tensor of a model, and the report of its run.

    Args:
      folder: a Hugging Face folder, such as one that jaxprune llm wrote.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder} holds no model*.safetensors. Pass a folder that jaxprune llm has finished."
        )
    console, table = Console(), Table("tensor", "shape", "sparsity", "2:4", "4:8")
    for column in table.columns[2:]:
        column.justify = "right"
    for file in files:
        for name, kept in _kept(file):
            _add_row(table, name, kept)
    console.print(table if table.rows else "No tensor of two axes has a zero.")
    if (folder / REPORT).is_file():
        tables.print_report(read_json(folder / REPORT), folder, console)


def _kept(file: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    try:
        with safe_open(str(file), framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                yield name, tensors.get_tensor(name) != 0
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read ({error}). Write or download it again.") from error


def _add_row(table: Table, name: str, kept: np.ndarray[Any, Any]) -> None:
    if kept.all() or kept.ndim != 2:
        return
    holds = ["yes" if _holds(kept, n, m) else "no" for n, m in ((2, 4), (4, 8))]
    table.add_row(name, f"{kept.shape[0]} x {kept.shape[1]}", f"{1 - kept.mean():.4f}", *holds)


def _holds(kept: np.ndarray[Any, Any], n: int, m: int) -> bool:
    """Tell whether at most n of every m consecutive inputs are kept; tensors are (out, in)."""
    if kept.shape[1] % m:
        return False
    return bool((kept.reshape(kept.shape[0], -1, m).sum(-1) <= n).all())
