"""Compile for TPUs on a machine without one, and read what the compiler made.

Needs the package `libtpu`, which is TPU compiler and driver in one, for Linux on x86-64.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPUs, with the figures that Google publishes.

    Attributes:
      kind: what jax calls the device.
      topology: the smallest slice that the compiler knows.
      flops: bfloat16 operations per second.
      bytes: read from memory per second.
      cores: that share a chip, and its work.
      per_cycle: bfloat16 operations that a core's matrix units do per cycle.
    """

    kind: str
    topology: str
    flops: float
    bytes: float
    cores: int
    per_cycle: int

    @property
    def clock(self) -> float:
        """Cycles per second."""
        return self.flops / (self.cores * self.per_cycle)


CHIPS = {
    "v5e": Chip("TPU v5 lite", "v5e:2x2", 197e12, 819e9, 1, 4 * 2 * 128**2),
    "v5p": Chip("TPU v5", "v5p:2x2x1", 459e12, 2765e9, 2, 4 * 2 * 128**2),
    "v6e": Chip("TPU v6 lite", "v6e:2x2", 918e12, 1640e9, 1, 4 * 2 * 256**2),
}

# No TPU is looked for, nothing is logged, and several processes may compile at a time.
QUIET = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_LOG_DIR": "disabled",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

_UNKNOWN = 2**63 - 1
_PRODUCT, _STORE = r"vmatmul[.\w]*", r"vst[.\w]*"


def missing() -> str | None:
    """Return why nothing can be compiled here, or None."""
    if importlib.util.find_spec("libtpu") is None:
        return "the TPU compiler is not installed: pip install libtpu (Linux on x86-64)"
    return None


@functools.cache
def devices(chip: str) -> Sequence[Any]:
    """Return the devices of a slice that is not there."""
    with environment(QUIET):
        found = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip].topology)
    return found.devices


@functools.cache
def sharding(chip: str) -> NamedSharding:
    """Return the sharding of arrays on one chip that is not there."""
    return NamedSharding(Mesh(np.array(devices(chip)[:1]), ("x",)), PartitionSpec())


def lowered(chip: str, function: Callable[..., Any], *args: Any) -> Any:
    """Lower a function for a chip; ``.compile()`` compiles it.

    Args:
      chip: one of `CHIPS`.
      function: of arrays.
      args: trees of arrays, or of their descriptions.
    """
    where = sharding(chip)
    described = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), args)
    return jax.jit(function).lower(*described)


def compiled(chip: str, function: Callable[..., Any], *args: Any) -> Any:
    """Lower and compile a function for a chip."""
    return lowered(chip, function, *args).compile()


def estimated_cycles(executable: Any) -> int:
    """Return XLA's own estimate for a program without its kernels, summed over its operations.

    Operations that it has no estimate of, those of a v6e's sparse cores, are left out.
    """
    found = map(int, re.findall(r'"estimated_cycles":"(\d+)"', executable.as_text()))
    return sum(cycles for cycles in found if cycles < _UNKNOWN)


class Region(NamedTuple):
    """Instructions of a kernel between two marks of its schedule.

    Attributes:
      is_loop: it is a loop's body, or the first part of one.
      cycles: bundles of instructions; one is issued per cycle.
      products: instructions for the matrix units.
      stores: of vectors.
    """

    is_loop: bool
    cycles: int
    products: int
    stores: int


class Schedule(NamedTuple):
    """The compiler's static schedule of a kernel, without waiting for memory.

    Attributes:
      regions: in the order of the listing.
    """

    regions: tuple[Region, ...]

    @property
    def loop(self) -> int:
        """Cycles of one turn of the loops that multiply."""
        return sum(r.cycles for r in self.regions if r.is_loop and r.products)

    @property
    def straight(self) -> int:
        """Cycles of the largest part that multiplies without a loop, 0 if there is none."""
        return max((r.cycles for r in self.regions if r.products and not r.is_loop), default=0)

    @property
    def edges(self) -> int:
        """Cycles that store vectors and do not multiply: sums are cleared or written."""
        return sum(r.cycles for r in self.regions if r.stores > 8 and not r.products)

    @property
    def rest(self) -> int:
        """All other cycles, whichever branches are taken."""
        multiply = sum(r.cycles for r in self.regions if r.products)
        return sum(r.cycles for r in self.regions) - multiply - self.edges


@contextlib.contextmanager
def dumping() -> Iterator[Path]:
    """Have the compiler write its schedules to the folder that is yielded.

    The compiler reads its settings once in a process: nothing may be compiled for a TPU before.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        flags += " --xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"
        with environment({"LIBTPU_INIT_ARGS": flags}):
            yield Path(folder)


def schedule(folder: Path, kernel: str) -> Schedule:
    """Return the schedule that was written for a kernel, and clear the folder."""
    files = [p for p in folder.glob("*-final_bundles.txt") if "schedule-analysis" not in p.name]
    found = [p for p in files if re.match(rf"\d+-{re.escape(kernel)}\.\d+-\d+-", p.name)]
    assert len(found) == 1, (kernel, [p.name for p in files])
    result = parse_schedule(found[0].read_text())
    clear(folder)
    return result


def clear(folder: Path) -> None:
    """Remove what the compiler has written."""
    for path in folder.iterdir():
        path.unlink()


def parse_schedule(text: str) -> Schedule:
    """Read a listing of bundles, one a line: its address, a mark where control may come, a body."""
    regions = [Region(False, 0, 0, 0)]
    for line in text.splitlines():
        bundle = re.match(r"\s*(?:0x[0-9a-f]+|0)\s+(\w\w)?\s*:", line)
        if bundle is None:
            continue
        if bundle[1]:
            regions.append(Region(bundle[1] == "LB", 0, 0, 0))
        products, stores = (len(re.findall(rf"\b{x}\b", line)) for x in (_PRODUCT, _STORE))
        was = regions[-1]
        regions[-1] = Region(
            was.is_loop, was.cycles + 1, was.products + products, was.stores + stores
        )
    return Schedule(tuple(regions))


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
