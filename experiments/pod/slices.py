"""Slices of TPUs that are not there."""

import dataclasses
import functools
from typing import Any

from jax.experimental import mesh_utils, topologies
from jax.sharding import Mesh

from experiments.benchmarks import tpu_aot
from experiments.pod.model import FSDP, TENSOR


@dataclasses.dataclass(frozen=True)
class Slice:
    """Some chips of one kind.

    Attributes:
      topology: as the compiler knows it.
      chips: how many.
      gigabytes: of memory that a chip has, as Google publishes it.
      sequences: of a batch for each group of chips that holds a copy of the weights.
    """

    topology: str
    chips: int
    gigabytes: int
    sequences: int


SLICES = {
    "v5e-256": Slice("v5e:16x16", 256, 16, 1),
    "v6e-256": Slice("v6e:16x16", 256, 32, 2),
    "v5p-128": Slice("v5p:4x4x8", 128, 95, 4),
}


@functools.cache
def devices(topology: str) -> Any:
    """Describe the chips of a slice; the package `libtpu` knows them."""
    with tpu_aot.environment(tpu_aot.QUIET):
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def mesh(topology: str, tensor: int) -> Mesh:
    """Return a mesh that splits weights over all chips: so many ways by tensors, the rest by FSDP.

    Its axes are automatic: the compiler completes the shardings of what is computed.
    """
    chips = devices(topology)
    shape = (len(chips) // tensor, tensor)
    placed = mesh_utils.create_device_mesh(
        shape, devices=list(chips), allow_split_physical_axes=True
    )
    return Mesh(placed, (FSDP, TENSOR))
