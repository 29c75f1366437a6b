"""Write docs/pod.md from the stored results."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from experiments.pod import measure, steps
from experiments.pod.cells import Result
from experiments.pod.model import MODELS, Shape
from experiments.runner import page

PAGE = Path(__file__).parents[2] / "docs" / "pod.md"
BYTES, TIMES = 1.0, 1.15  # expected: at most so many bytes a weight, and so much longer to compile
ROUNDING = 0.05  # of a byte a weight: what programs and scalars take

HEAD = """\
# On a pod

Whole training steps of Llama-shaped decoders, compiled for slices of TPUs that are not there. No
TPU was used: the figures are the compiler's (`libtpu`), for one chip, and nothing was run.

A step is loss, gradients, clipping by their global norm, AdamW, and what jaxprune adds. Weights,
moments and masks are float32 and boolean and split over all chips, by FSDP and by tensors; products
are bfloat16. Blocks are stacked and scanned, and computed again in the backward pass; the sequence
is split by tensors between them. Each layer of a stack has a budget and a ranking of its own. The
kernels of the blocks are prunable, not embedding and head.
"""

RECIPES = f"""\
| program | what is compiled |
| --- | --- |
| bare | AdamW, without jaxprune |
| static | `static`, with masks of {steps.SPARSITY:.0%} sparsity |
| gradual | `gradual` to {steps.SPARSITY:.0%}, masks change every {steps.EVERY} steps |
| gradual-packed | the same with `packed=True` |
| rigl | `rigl` at {steps.SPARSITY:.0%}, masks change every {steps.EVERY} steps |
| mdgf | `mdgf_exponential` to 2:4, masks change in every step |
| forward | the forward pass through all blocks |
| calibration | the same with `graph.capture` of the squares of every weight's input |
"""

READING = """\
*Arguments* are weights, optimizer state, masks and tokens; *added* is what the program is given
beyond the bare one, calibration beyond the forward pass, in bytes for each prunable weight on the
chip. Counts of operations and of bytes that are read and written are the compiler's cost analysis,
which counts the body of a loop once: one block, one pass of a search. Of `lax.cond`, the branch
that changes masks is counted. *Collectives* are those beyond the bare program's, with the bytes of
the largest. Compile times are CPU seconds of all threads on a shared machine, whose other work
moves them by a quarter.
"""

MISSES = """\
Why it misses:

- **Compile time.** Every kind of weight has a search of its own: a loop over thresholds, and one
  over ties. What takes the time is the machine code of their counts, made once for each shape that
  a chip holds: five in a decoder layer of 70B. Of what `gradual` adds there, about 40% is the
  search for thresholds, half is ties, and the rest health and updates that land on zero; the second
  selection of `rigl` shares most of the code of the first. It is paid once, and the number of
  layers does not matter. Groups of 2:4 are compared without a loop.
- **1B and 7B.** A chip has few weights (4 and 25 million): the programs themselves, and what the
  compiler moves between fast memory and the other, are some megabytes, a fraction of a byte a
  weight or a few.
- **packed.** A byte holds eight weights along the last axis. The compiler makes 32-bit numbers of
  them in arrays that it pads: on a TPU boolean masks take less.
"""


class Row(NamedTuple):
    """A result and the one that it is compared with, if there is one."""

    name: str
    program: str
    result: Result
    bare: Result | None

    @property
    def added(self) -> float | None:
        """Bytes for each prunable weight."""
        if self.bare is None:
            return None
        beyond = self.result.values["bytes"] - self.bare.values["bytes"]
        return beyond * self.result.chips / self.result.prunable

    @property
    def times(self) -> float | None:
        """Compile time over the other's."""
        if self.bare is None or not (self.result.fits and self.bare.fits):
            return None
        return self.result.values["seconds"] / self.bare.values["seconds"]

    @property
    def collectives(self) -> list[list[object]]:
        """Those beyond the other's."""
        if self.bare is None or not (self.result.fits and self.bare.fits):
            return []
        return measure.added(self.result.values, self.bare.values)


def text(results: Mapping[str, Result]) -> str:
    """Return the text of the page."""
    rows = list(_rows(results))
    parts = [HEAD, _provenance(results), _models(), RECIPES, READING]
    for place in dict.fromkeys(row.result.settings["place"] for row in rows):
        here = [row for row in rows if row.result.settings["place"] == place]
        parts += [f"## {place}\n", _slice(here), _table(here)]
    parts += ["## What was expected\n", _verdicts(rows), MISSES, _left_out(results)]
    return "\n".join(part for part in parts if part)


def _rows(results: Mapping[str, Result]) -> Iterator[Row]:
    order = list(steps.LOWERED)
    sizes = list(MODELS)

    def place(name: str) -> tuple[str, int, int]:
        known = results[name].settings
        model = known["model"]
        size = sizes.index(model) if model in sizes else -1
        return known["place"], size, order.index(known["program"])

    for name in sorted(results, key=place):
        result, program = results[name], results[name].settings["program"]
        other = steps.BARE.get(program, "bare")
        stem = name.removesuffix(program)
        same = program in ("bare", "forward")
        yield Row(name, program, result, None if same else results.get(f"{stem}{other}"))


def _provenance(results: Mapping[str, Result]) -> str:
    origins = dict.fromkeys(result.origin for result in results.values())
    return "\n".join(f"`{command}` (jax {jax}, {lib})." for lib, jax, command in origins) + "\n"


def _models() -> str:
    header = ["model", "layers", "width", "heads", "hidden", "vocabulary", "weights", "prunable"]
    cells = [
        [
            name,
            str(shape.layers),
            str(shape.width),
            f"{shape.heads}, {shape.kv_heads} for keys",
            str(shape.hidden),
            str(shape.vocabulary),
            _billions(shape.prunable + 2 * shape.vocabulary * shape.width),
            _billions(shape.prunable),
        ]
        for name, shape in MODELS.items()
    ]
    return page.table(header, cells)


def _slice(rows: list[Row]) -> str:
    known = rows[0].result.settings
    place = known["slice"]
    meshes = {}
    for row in rows:
        tensor = row.result.settings["tensor"]
        fsdp = place["chips"] // tensor
        meshes[row.result.settings["model"]] = f"{fsdp} × {tensor}"
    placed = ", ".join(f"{model}: {mesh}" for model, mesh in meshes.items())
    return (
        f"{place['chips']} chips (`{place['topology']}`) of {place['gigabytes']} GB. "
        f"FSDP × tensor: {placed}. {place['sequences']} × {known['length']} tokens for each FSDP "
        "group.\n"
    )


def _table(rows: list[Row]) -> str:
    header = ["model", "program", "arguments", "temporaries", "added, B a weight", "FLOPs"]
    header += ["bytes accessed", "collectives", "compile", "to bare", "fits"]
    return page.table(header, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    values, settings = row.result.values, row.result.settings
    start = [settings["model"], row.program]
    room = settings["slice"]["gigabytes"]
    if not row.result.fits:
        return [*start, *["-"] * 8, f"no: {_gigabytes(values['bytes'])} of {room} GB"]
    return [
        *start,
        _gigabytes(values["arguments"]),
        _gigabytes(values["temporaries"]),
        "" if row.added is None else f"{row.added:+.2f}",
        f"{values['flops']:.2e}",
        f"{values['accessed']:.2e}",
        "" if row.bare is None else _moved(row),
        f"{values['seconds']:.0f} s",
        "" if row.times is None else f"{row.times:.2f}",
        f"yes: {_gigabytes(values['bytes'])} of {room} GB",
    ]


def _moved(row: Row) -> str:
    found = row.collectives
    if not found:
        return "none"
    kinds = sorted({str(each[0]) for each in found})
    count, largest = sum(int(str(each[3])) for each in found), max(int(str(e[1])) for e in found)
    size = f"{largest} B" if largest < 1000 else f"{largest / 1000:.1f} kB"
    return f"{count} {' and '.join(kinds)}, {size}"


def _verdicts(rows: list[Row]) -> str:
    compared = [row for row in rows if row.bare is not None]
    trained = [row for row in compared if row.program != "calibration"]
    limit = {row.name: 1 / 8 if row.program.endswith("packed") else BYTES for row in trained}
    heavy = [r for r in trained if (r.added or 0.0) > limit[r.name] + ROUNDING]
    large = [r for r in compared if any(int(str(e[1])) >= _least(r) for e in r.collectives)]
    slow = [r for r in compared if r.times is not None and r.times > TIMES]
    held = len(trained), len(compared), sum(row.times is not None for row in compared)
    lines = [
        _line("memory", "at most a byte for each prunable weight, a bit if packed", heavy, held[0]),
        _line("collectives", "none of a weight's size beyond the bare step's", large, held[1]),
        _line("compile time", f"at most {TIMES} times the bare step's", slow, held[2]),
    ]
    return page.table(["", "expected", "holds for", "misses"], lines)


def _line(name: str, expected: str, misses: list[Row], total: int) -> list[str]:
    shown = ", ".join(row.name for row in misses) or "none"
    return [name, expected, f"{total - len(misses)} of {total}", shown]


def _least(row: Row) -> int:
    """Return the bytes of the smallest kernel's mask of one layer, gathered as FSDP gathers it."""
    shape = Shape(**row.result.settings["shape"])
    return shape.width * shape.kv_heads * shape.head_dim // row.result.settings["tensor"]


def _left_out(results: Mapping[str, Result]) -> str:
    seconds = sum(
        result.values.get("seconds", 0) + result.values["lowering_seconds"]
        for result in results.values()
    )
    return (
        f"All programs of this page took {math.ceil(seconds / 60)} CPU minutes. Not compiled: 1B "
        "and 7B for v6e and v5p, which have more memory; calibration for v5p; other meshes, and "
        "slices of several hosts' data centres.\n"
    )


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f}"


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f}B"
