"""Sparse training of a decoder that is split over all devices, against the bare optimizer.

    python -m experiments.benchmarks.sharded [--seconds S] [--layers N ...] [--output FOLDER]

The training steps are those of `experiments.pod`: weights, moments and masks split by FSDP, the
batch over the same devices. Steps that change masks are timed apart from the others; both are one
program, which is told the step. Steps run back to back. The selection over all prunable weights
together is timed against one read of their scores. Results are written after each row; the file's
runs on other numbers of devices stay.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.benchmarks import sharded_selection, timing
from experiments.benchmarks.sharded_selection import Selection
from experiments.benchmarks.sharded_step import BARE, ONE_KIND, WRAPPED, Program, drawn, prunable
from experiments.pod import measure, steps
from experiments.pod.model import BLOCK_KERNELS, FSDP, MODELS, TENSOR, Shape

Tree = Any
Row = dict[str, Any]

SMALL = Shape(layers=4, width=128, heads=4, kv_heads=2, head_dim=32, hidden=256, vocabulary=512)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 if a mask was wrong."""
    words = sys.argv[1:] if argv is None else list(argv)
    given = _parser().parse_args(words)
    lengths = {field.name: getattr(given, field.name) for field in dataclasses.fields(Shape)}
    mesh = Mesh(np.array(jax.devices())[:, None], (FSDP, TENSOR))
    sequences = given.sequences * mesh.size
    work = steps.Work(Shape(**lengths), mesh, sequences, given.length, BLOCK_KERNELS)
    content: Row = {
        "devices": mesh.size,
        "shape": lengths,
        "weights": sum(x.size for x in jax.tree.leaves(work.params)),
        "prunable": work.shape.prunable,
        "sequences": given.sequences,
        "length": given.length,
        "rows": [],
        "selection": [],
        "earlier": earlier(mesh.size, given.output),
    }
    for kind, row in run(work, given.only, given.seconds):
        content[kind].append(row)
        timing.save("sharded", words, content, given.output)
        timing.said(f"{kind}: { {k: v for k, v in row.items() if k != 'collectives'} }")
    return int(any(row["wrong"] for row in content["rows"] + content["selection"]))


def earlier(devices: int, folder: Path) -> list[Row]:
    """Return the runs on other numbers of such devices."""
    return [run for run in timing.runs("sharded", folder) if run["devices"] != devices]


def run(work: steps.Work, names: Sequence[str], seconds: float) -> Iterator[tuple[str, Row]]:
    """Compile, then measure.

    Args:
      work: what is trained.
      names: of `WRAPPED`.
      seconds: time for the samples of one case.

    Yields:
      ``("selection", row)`` and ``("rows", row)``.
    """
    programs = {BARE: Program(work, BARE)}
    with ThreadPoolExecutor(max_workers=16) as pool:
        # Alone, so that the others find the products' fastest algorithms known, and take the same.
        programs[BARE].compile(pool)
        selection, drawing = Selection(prunable(work)), drawn(work)
        programs |= {name: Program(work, name) for name in names}
        timing.said("traced")
        programs[BARE].ready()
        timing.said("the bare step is compiled")
        for name in names:
            programs[name].compile(pool)
        job = pool.submit(drawing.compile)
        selection.compile(pool)
        for name in names:
            programs[name].ready()
            timing.said(f"{name} is compiled")
        draw = job.result()
    timing.said("compiled")
    # Virtual devices share a CPU's threads: queued programs can wait for each other for ever.
    queued = 0.0 if jax.default_backend() == "cpu" else seconds
    effort = timing.Effort(least=queued / 4, total=seconds, rounds=(4, 8))
    for row in selection.measure(dataclasses.replace(effort, least=queued / 40)):
        yield "selection", row
    figures = {name: program.figures() for name, program in programs.items()}
    most = peaks(programs, figures, draw)
    timing.said("peaks are known")
    bare = programs[BARE]
    bare.start(*draw())
    for name in names:
        row = _timed(programs[name], bare, draw, effort)
        row |= {"peak": most[name], **figures[name]}
        row["collectives"] = measure.added(figures[name], figures[BARE])
        if name == names[0]:
            same = {"name": BARE, "bare": row["bare"], "ordinary": row["bare"], "update": None}
            rest = {"wrong": 0, "peak": most[BARE], **figures[BARE], "collectives": []}
            yield "rows", same | rest
        yield "rows", row


def table(rows: Sequence[Row], prunable_here: float) -> tuple[list[str], list[list[str]]]:
    """Return header and cells; memory is that of one device.

    Args:
      rows: the bare optimizer's first.
      prunable_here: prunable weights of one device.
    """
    header = ["optimizer", "step", "to bare", "update", "to bare", f"every {steps.EVERY} steps"]
    header += ["memory", "peak", "added, B a weight", "collectives"]
    least = _bytes(rows[0])
    cells = [
        [
            row["name"],
            timing.shown(row["ordinary"]),
            timing.ratio(row["ordinary"], row["bare"]),
            timing.shown(row["update"]),
            timing.ratio(row["update"], row["bare"]),
            timing.ratio(
                timing.amortised(row["ordinary"], row["update"], steps.EVERY), row["bare"]
            ),
            f"{_bytes(row) / 1e9:.2f} GB",
            "-" if row["peak"] is None else f"{row['peak'] / 1e9:.2f} GB",
            f"{(_bytes(row) - least) / prunable_here:+.2f}",
            sharded_selection.moved(row["collectives"]),
        ]
        for row in rows
    ]
    return header, cells


def peaks(
    programs: Mapping[str, Program], figures: Mapping[str, Row], draw: Callable[[], Any]
) -> dict[str, float | None]:
    """Return the most memory that was in use while each program ran alone, None if not known.

    A device tells the most since it was started: programs run in the order of their sizes, and
    one that does not raise the most is not known.
    """
    found: dict[str, float | None] = {}
    for name in sorted(programs, key=lambda name: _bytes(figures[name])):
        before, program = _most(), programs[name]
        program.start(*draw())
        jax.block_until_ready(
            program.update() if name not in (BARE, *ONE_KIND) else program.ordinary()
        )
        program.stop()
        after = _most()
        found[name] = after if after is not None and before is not None and after > before else None
    return found


def _timed(program: Program, bare: Program, draw: Callable[[], Any], effort: timing.Effort) -> Row:
    """Time a program's steps between those of the bare one, and look at its masks."""
    program.start(*draw())
    cases: dict[str, timing.Run] = {"bare": bare.ordinary, "ordinary": program.ordinary}
    if program.name not in ONE_KIND:
        cases["update"] = program.update
    row = {"name": program.name, "update": None, **timing.medians(cases, effort)}
    row["wrong"] = program.wrong()
    program.stop()
    return row


def _most() -> float | None:
    stats = [device.memory_stats() for device in jax.local_devices()]
    if not all(each and "peak_bytes_in_use" in each for each in stats):
        return None
    return max(each["peak_bytes_in_use"] for each in stats if each)


def _bytes(row: Row) -> int:
    return row["arguments"] + row["temporaries"]


def _parser() -> argparse.ArgumentParser:
    small = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, length in dataclasses.asdict(SMALL if small else MODELS["1B"]).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=length)
    parser.add_argument("--length", type=int, default=32 if small else 4096)
    parser.add_argument("--sequences", type=int, default=2, help="for each device")
    parser.add_argument("--only", nargs="+", default=list(WRAPPED), choices=list(WRAPPED))
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each case")
    parser.add_argument("--output", type=Path, default=timing.RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
