"""Every transform on eight devices: the numbers of one, and nothing large is moved."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests import hlo
from tests.members import CALLS, TransformRow
from tests.transforms.common import rig

SPECS = {
    "hidden": {"kernel": PartitionSpec("data", "model"), "bias": PartitionSpec("model")},
    "norm": {"scale": PartitionSpec()},
    "out": {"kernel": PartitionSpec(("data", "model"), None)},
}


def test_eight_devices_train_as_one_and_move_scalars_only(row: TransformRow, mesh: Mesh):
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)
    tx, place = rig.transform(row, rig.SGD), lambda tree: jax.device_put(tree, shardings)
    with jax.set_mesh(mesh):
        params = place(rig.parameters())
        state = jax.jit(tx.init)(params)
        for path, mask in jax.tree_util.tree_leaves_with_path(state.masks):
            branch = path[0].key
            assert mask.sharding.is_equivalent_to(shardings[branch]["kernel"], 2)
        start = jax.tree.map(lambda leaf: leaf.sharding, state)
        arguments = params, state, place(rig.gradients(0))
        step = jax.jit(rig.step_of(tx)).lower(*arguments).compile()
        for call in range(CALLS):
            state = jax.device_put(state, start)
            params, state = step(params, state, place(rig.gradients(call)))
            found, expected = rig.snapshot(params, state), rig.trained(row, rig.SGD)[call]
            assert all(map(rig.equal, found, expected))
    moved = hlo.collectives(step)
    assert {operation.kind for operation in moved} <= {"all-reduce"}
    assert max((operation.bytes for operation in moved), default=0) <= 256
    assert min(np.prod(shape) * 4 for shape in rig.SHAPES.values()) > 256
