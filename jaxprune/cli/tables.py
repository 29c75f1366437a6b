"""What the commands print."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import filesize
from rich.console import Console
from rich.table import Table

from jaxprune.posttraining import Block


def print_blocks(blocks: Sequence[Block], console: Console) -> None:
    """Print a line for each block, with the worst of its weights."""
    table = Table("block", "sparsity", "error", "largest error", "damping", "seconds")
    for column in table.columns[1:]:
        column.justify = "right"
    for block in blocks:
        sizes = np.array([one.mask.size for one in block.weights], np.float64)
        shares = np.array([one.sparsity for one in block.weights])
        worst = max(block.weights, key=lambda one: one.error)
        damping = [one.damping for one in block.weights if one.damping is not None]
        name = worst.path.removesuffix("/kernel").rpartition("/")[2]
        table.add_row(
            str(block.number),
            f"{shares @ sizes / sizes.sum():.4f}",
            f"{np.mean([one.error for one in block.weights]):.4f}",
            f"{worst.error:.4f} {name}",
            f"{max(damping):.3g}" if damping else "-",
            f"{block.seconds:.2f}",
        )
    console.print(table)


def print_report(report: Mapping[str, Any], out: Path, console: Console) -> None:
    """Print what a run came to."""
    table = Table(show_header=False)
    values = report["perplexity"]
    lines = {
        "model": report["model"],
        "method": f"{report['method']}, {report['pattern']}, {report['allocation']}",
        "perplexity, dense": f"{values['dense']:.3f}",
        "perplexity, pruned": f"{values['pruned']:.3f}",
        "sparsity of the blocks": f"{report['sparsity']:.4f}",
        "bytes": filesize.decimal(report["bytes"]["dense"]),
        "bytes without zeros": filesize.decimal(report["bytes"]["bitmap"]),
        "seconds": f"{report['seconds']:.1f}",
        "seed": str(report["seed"]),
        "written to": str(out),
    }
    for name, value in lines.items():
        table.add_row(name, value)
    console.print(table)
