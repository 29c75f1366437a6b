"""Every transform on eight devices: the numbers of one, and nothing large is moved."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests import hlo
from tests.members import CALLS, TRANSFORMS, TransformRow
from tests.transforms.common import rig
from tests.transforms.common.rows import is_core, is_family, marked

SPECS = {
    "hidden": {"kernel": PartitionSpec("data", "model"), "bias": PartitionSpec("model")},
    "norm": {"scale": PartitionSpec()},
    "out": {"kernel": PartitionSpec(("data", "model"), None)},
}
SCALARS = 256  # bytes


def is_asked(row: TransformRow) -> bool:
    """Tell whether a row belongs in the fast suite: layers that compete do so over devices."""
    return is_family(row) or "moves counts" in row.needs


PLACED = [marked(row, "explicit", fast=is_asked(row)) for row in TRANSFORMS]
PLACED += [marked(row, "auto", fast=is_core(row)) for row in TRANSFORMS]
on_each_mesh = pytest.mark.parametrize(("row", "mesh"), PLACED, indirect=["mesh"])


def own_arrays(state: Any) -> dict[str, jax.Array]:
    """What a transform keeps of a weight's shape, besides the inner optimizer's state."""
    found = jax.tree_util.tree_leaves_with_path((state.masks, state.extra))
    shapes = rig.SHAPES.values()
    return {jax.tree_util.keystr(path): leaf for path, leaf in found if leaf.shape in shapes}


@on_each_mesh
def test_eight_devices_train_as_one_and_move_scalars_only(row: TransformRow, mesh: Mesh):
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)
    tx, place = rig.transform(row, rig.SGD), lambda tree: jax.device_put(tree, shardings)
    with jax.set_mesh(mesh):
        params = place(rig.parameters())
        state = jax.jit(tx.init)(params)
        for path, leaf in own_arrays(state).items():
            branch = "hidden" if "hidden" in path else "out"
            assert leaf.sharding.is_equivalent_to(shardings[branch]["kernel"], 2), path
        start = jax.tree.map(lambda leaf: leaf.sharding, state)
        arguments = params, state, place(rig.gradients(0))
        step = jax.jit(rig.step_of(tx)).lower(*arguments).compile()
        for call in range(CALLS):
            state = jax.device_put(state, start)
            params, state = step(params, state, place(rig.gradients(call)))
            # On the host: outside jit every operation would be compiled for these shardings.
            found = rig.snapshot(*jax.device_get((params, state)))
            assert all(map(rig.equal, found, rig.trained(row, rig.SGD)[call]))
    moved = hlo.collectives(step)
    assert {operation.kind for operation in moved} <= {"all-reduce"}
    assert max((operation.bytes for operation in moved), default=0) <= SCALARS
    assert min(np.prod(shape) * 4 for shape in rig.SHAPES.values()) > SCALARS
