"""Every transform saved and restored: the run goes on as if nothing had been."""

from pathlib import Path

import jax

from jaxprune.checkpoint import restore, save
from tests.members import CALLS, TransformRow
from tests.transforms.common import rig
from tests.transforms.common.rows import every_row

HALF = 5  # between updates of masks, with more to come


@every_row
def test_a_restored_run_goes_on_bit_for_bit(row: TransformRow, tmp_path: Path):
    params = rig.parameters()
    tx = rig.transform(row, rig.ADAM)
    step, state = rig.step_of(tx), tx.init(params)
    for call in range(HALF):
        params, state = step(params, state, rig.gradients(call))
    save(tmp_path, HALF, {"params": params, "opt_state": state})

    others = jax.tree.map(lambda leaf: leaf + 1.0, rig.parameters())  # nothing of them may be left
    fresh = {"params": others, "opt_state": tx.init(others)}
    reached, restored = restore(tmp_path, fresh)
    assert reached == HALF
    params, state = restored["params"], restored["opt_state"]
    for call in range(HALF, CALLS):
        params, state = step(params, state, rig.gradients(call))
        found, expected = rig.snapshot(params, state), rig.trained(row)[call]
        assert all(map(rig.equal, found, expected))
