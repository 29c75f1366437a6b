"""Compile kernels for the H100 on a machine without one, and read what the assembler says.

Needs jax's CUDA plugin and its libraries (`requirements-aot-gpu.txt`, 2.6 GB); no GPU. The tests
that use it lie in `aot_gpu_*.py`, which the default run does not collect: `make test-gpu-aot`.
"""

import functools
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.benchmarks.tpu_aot import environment

_TARGET = pathlib.Path(__file__).with_name("h100.txtpb")


class Report(NamedTuple):
    """What the assembler reports of one kernel; sizes in bytes."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


@functools.cache
def sharding() -> NamedSharding:
    """Return the sharding of arrays on one H100 that is not there."""
    target = _TARGET.read_text()
    topology = topologies.get_topology_desc(platform="cuda", target_config=target, topology="1x1x1")
    return NamedSharding(Mesh(np.array(topology.devices[:1]), ("x",)), PartitionSpec())


def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Return the description of an array on the H100."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding())


def compile_kernel(function: Callable[..., Any], *args: Any) -> Report:
    """Compile a function of one Mosaic kernel and return what the assembler reports of it."""
    with tempfile.TemporaryDirectory() as folder:
        dumped = environment({"MOSAIC_GPU_DUMP_TO": folder, "MOSAIC_GPU_DUMP_PTXAS": "1"})
        with dumped, jax.sharding.use_abstract_mesh(sharding().mesh.abstract_mesh):
            jax.jit(function).lower(*args).compile()
        files = sorted(pathlib.Path(folder).iterdir())
        text = "\n".join(f.read_text() for f in files if f.suffix in (".ptxas", ".txt"))
    return Report(
        _number(r"Used (\d+) registers", text),
        _number(r"(\d+) bytes stack frame", text),
        _number(r"(\d+) bytes spill stores", text),
        _number(r"(\d+) bytes spill loads", text),
        _number(r"smem_scratch_bytes=(\d+)", text),
    )


def _number(pattern: str, text: str) -> int:
    found = set(re.findall(pattern, text))  # a warning repeats what the report says
    assert len(found) == 1, (pattern, text)
    return int(found.pop())
