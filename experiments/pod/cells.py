"""What is compiled: a program, for a decoder, on a slice. One JSON file for each."""

import dataclasses
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.pod import measure, slices, steps
from experiments.pod.model import BLOCK_KERNELS, MODELS, Shape
from experiments.pod.slices import SLICES, Slice

RESULTS = Path(__file__).parents[1] / "results" / "pod"
TENSOR = {"1B": 4, "7B": 8, "70B": 8}
LENGTH = 4096

SMALL_SHAPE = Shape(
    layers=4, width=256, heads=4, kv_heads=2, head_dim=64, hidden=512, vocabulary=1024
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One program to compile.

    Attributes:
      place: name of the slice.
      slice: the slice.
      model: name of the decoder.
      shape: of the decoder.
      tensor: how many ways weights are split by tensors; the rest is FSDP.
      length: of a sequence.
      where: the prunable weights.
      program: one of `steps.LOWERED`.
    """

    place: str
    slice: Slice
    model: str
    shape: Shape
    tensor: int
    length: int
    where: str
    program: str

    @property
    def name(self) -> str:
        return f"{self.place}-{self.model}-{self.program}".lower()

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the result, versions of the compiler apart."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def matches(self, expression: str) -> bool:
        return re.search(expression, self.name) is not None

    def run(self, reports: Path) -> dict[str, Any]:
        """Lower and compile; return the figures."""
        mesh = slices.mesh(self.slice.topology, self.tensor)
        sequences = self.slice.sequences * mesh.devices.shape[0]
        work = steps.Work(self.shape, mesh, sequences, self.length, self.where)
        before = time.process_time()
        lowered = steps.LOWERED[self.program](work)
        traced = time.process_time() - before
        return {"lowering_seconds": round(traced, 1)} | measure.compiled(lowered, reports)


def _cells(place: str, model: str, programs: tuple[str, ...]) -> list[Cell]:
    common = (SLICES[place], model, MODELS[model], TENSOR[model], LENGTH, BLOCK_KERNELS)
    return [Cell(place, *common, program) for program in programs]


_STEPS = ("bare", "static", "gradual", "rigl", "mdgf")
_ALL = (*_STEPS, "forward", "calibration")

CELLS = [
    *_cells("v5e-256", "1B", _ALL),
    *_cells("v5e-256", "7B", (*_ALL, "gradual-packed")),
    *_cells("v5e-256", "70B", _ALL),
    *_cells("v6e-256", "70B", _ALL),
    *_cells("v5p-128", "70B", _STEPS),
]
"""In the order in which they are compiled; a program after what it is compared with."""

SMALL = [
    Cell(
        f"{kind}-4",
        dataclasses.replace(SLICES[like], topology=topology, chips=4),
        "tiny",
        SMALL_SHAPE,
        2,
        256,
        r"^layers/mlp/down_proj",
        program,
    )
    for kind, like, topology in (
        ("v5e", "v5e-256", "v5e:2x2"),
        ("v6e", "v6e-256", "v6e:2x2"),
        ("v5p", "v5p-128", "v5p:2x2x1"),
    )
    for program in _ALL
]
"""The same with tiny decoders, of which one kernel of a block is prunable."""


class Result(NamedTuple):
    """What is kept of a cell."""

    settings: Mapping[str, Any]
    origin: tuple[str, str, str]  # compiler, version of jax, command
    values: Mapping[str, Any]

    @property
    def prunable(self) -> int:
        """Prunable weights of the decoder."""
        return Shape(**self.settings["shape"]).prunable

    @property
    def chips(self) -> int:
        """Chips of the slice."""
        return self.settings["slice"]["chips"]

    @property
    def fits(self) -> bool:
        """Whether the compiler found room for the program."""
        return self.values["fits"]


def load(folder: Path) -> dict[str, Result]:
    """Read the results, by the cells' names."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        known = json.loads(path.read_text())
        origin = (known["device"], known["jax"], known["command"])
        found[path.stem] = Result(known["settings"], origin, known["values"])
    return found
