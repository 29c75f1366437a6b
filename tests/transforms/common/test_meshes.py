"""Every transform on eight devices: the numbers of one, and nothing large is moved."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import hlo
from tests.members import CALLS, TRANSFORMS, TransformRow
from tests.transforms.common import rig
from tests.transforms.common.rows import core_rows, is_core, is_family, marked

SPECS = {
    "hidden": {"kernel": PartitionSpec("data", "model"), "bias": PartitionSpec("model")},
    "norm": {"scale": PartitionSpec()},
    "out": {"kernel": PartitionSpec(("data", "model"), None)},
}
SCALARS = 256  # bytes


def is_asked(row: TransformRow) -> bool:
    """Tell whether a row is fast here: in some a whole layer, or model, decides what moves."""
    return is_family(row) or bool(row.needs & {"moves counts", "rests"})


explicit_for_all_auto_for_the_core = pytest.mark.parametrize(
    ("row", "mesh"),
    [marked(row, "explicit", fast=is_asked(row)) for row in TRANSFORMS]
    + [marked(row, "auto", fast=is_core(row)) for row in TRANSFORMS],
    indirect=["mesh"],
)


def placed(mesh: Mesh) -> Any:
    """Where each parameter lies."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)


def own_arrays(state: Any) -> dict[str, jax.Array]:
    """What a transform keeps of a weight's shape, besides the inner optimizer's state."""
    found = jax.tree_util.tree_leaves_with_path((state.masks, state.extra))
    shapes = rig.SHAPES.values()
    return {jax.tree_util.keystr(path): leaf for path, leaf in found if leaf.shape in shapes}


def spread(state: Any, shardings: Any) -> Any:
    """Put a state on the devices: what is of a weight's shape lies as the weight does."""
    by_shape = {
        rig.SHAPES[f"{name}/kernel"]: shardings[name]["kernel"] for name in ("hidden", "out")
    }
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf, by_shape.get(leaf.shape, shardings["norm"]["scale"])),
        state,
    )


@core_rows
def test_a_jitted_init_puts_what_it_makes_where_the_weights_are(row: TransformRow, mesh: Mesh):
    shardings, tx = placed(mesh), rig.transform(row, rig.SGD)
    with jax.set_mesh(mesh):
        found = own_arrays(jax.jit(tx.init)(jax.device_put(rig.parameters(), shardings)))
    assert found
    for path, leaf in found.items():
        branch = "hidden" if "hidden" in path else "out"
        assert leaf.sharding.is_equivalent_to(shardings[branch]["kernel"], 2), path


@explicit_for_all_auto_for_the_core
def test_eight_devices_train_as_one_and_move_scalars_only(row: TransformRow, mesh: Mesh):
    shardings, tx = placed(mesh), rig.transform(row, rig.SGD)
    place = functools.partial(jax.device_put, device=shardings)
    state = tx.init(rig.parameters())
    with jax.set_mesh(mesh):
        params, state = place(rig.parameters()), spread(state, shardings)
        step = jax.jit(rig.step_of(tx))
        step = step.lower(params, state, place(rig.gradients(0))).compile()
        for call in range(CALLS):
            params, state = step(params, spread(state, shardings), place(rig.gradients(call)))
            # On the host: outside jit every operation would be compiled for these shardings.
            found = rig.snapshot(*jax.device_get((params, state)))
            assert all(map(rig.equal, found, rig.trained(row, rig.SGD)[call]))
    moved = hlo.collectives(step)
    assert {operation.kind for operation in moved} <= {"all-reduce"}
    assert max((operation.bytes for operation in moved), default=0) <= SCALARS
    assert min(np.prod(shape) * 4 for shape in rig.SHAPES.values()) > SCALARS
