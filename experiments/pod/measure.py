"""Compile a program, and read what the compiler says of it."""

import collections
import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from experiments import hlo

CompileError = jax.errors.JaxRuntimeError

_ALLOCATED = re.compile(r"Memory Space: default \(color=0\)\nTotal bytes: (\d+)")
_BEYOND = re.compile(r"Used ([\d.]+)([MG]) of [\d.]+[MG] hbm")


@contextlib.contextmanager
def reporting() -> Iterator[Path]:
    """Have the compiler write its reports to the folder that is yielded.

    It reads its settings once in a process: nothing may be compiled before.
    """
    before = os.environ.get("XLA_FLAGS", "")
    with tempfile.TemporaryDirectory() as folder:
        asked = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
        os.environ["XLA_FLAGS"] = f"{before} {asked}".strip()
        try:
            yield Path(folder)
        finally:
            os.environ["XLA_FLAGS"] = before


def compiled(lowered: Any, reports: Path) -> dict[str, Any]:
    """Compile a program; return its figures, those of memory and work for one chip.

    Times are those of all threads, so that other work on the machine does not count.
    """
    for path in reports.glob("*.txt"):
        path.unlink()
    before = time.process_time()
    try:
        executable = lowered.compile()
    except CompileError as error:
        beyond = _BEYOND.search(str(error))
        if beyond is None:
            raise
        unit = {"M": 2**20, "G": 2**30}[beyond[2]]
        return {"fits": False, "bytes": round(float(beyond[1]) * unit)}
    seconds = time.process_time() - before
    memory, cost = executable.memory_analysis(), executable.cost_analysis()
    arguments = memory.argument_size_in_bytes
    allocated = _allocated(reports)
    return {
        "fits": True,
        "bytes": allocated,
        "arguments": arguments,
        "temporaries": allocated - arguments,
        "flops": cost["flops"],
        "accessed": cost["bytes accessed"],
        "seconds": round(seconds, 1),
        "collectives": listed(executable.as_text()),
    }


def _allocated(reports: Path) -> int:
    """Return the bytes of a chip's memory that the last program was given, arguments included."""
    found = sorted(reports.glob("*after_optimizations-memory-usage-report.txt"))
    text = max(found, key=lambda path: path.stat().st_mtime_ns).read_text()
    match = _ALLOCATED.search(text)
    assert match is not None, text[:200]
    return int(match[1])


def listed(text: str) -> list[list[Any]]:
    """List the collectives of a program: kind, bytes of the result, arrays and how often."""
    counts = collections.Counter(hlo.collectives(text))
    rows = [
        [operation.kind, operation.bytes, _shown(operation), count]
        for operation, count in counts.items()
    ]
    return sorted(rows, key=lambda row: (-row[1], row[0], row[2]))


def _shown(operation: hlo.Operation) -> str:
    """Write the arrays of a collective: equal ones once, with their number."""
    found = collections.Counter(
        f"{name}[{','.join(map(str, lengths))}]" for name, lengths in operation.shapes
    )
    return " ".join(f"{count}×{name}" if count > 1 else name for name, count in found.items())


def added(values: Mapping[str, Any], bare: Mapping[str, Any]) -> list[list[Any]]:
    """Return the collectives that a program has beyond those of another, as `listed` does."""
    before = collections.Counter({tuple(row[:3]): row[3] for row in bare["collectives"]})
    here = collections.Counter({tuple(row[:3]): row[3] for row in values["collectives"]})
    return [[*row, count] for row, count in (here - before).items()]
