"""What a transform says of its masks before the run is what they are in it."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from jaxprune.transforms import Stages, State
from tests.members import CALLS, TransformRow
from tests.transforms.common import rig
from tests.transforms.common.rows import every_row


def course(row: TransformRow) -> tuple[State, Stages]:
    """The state of a transform by shapes, and its stages."""
    shapes = jax.eval_shape(rig.parameters)
    state = jax.eval_shape(rig.transform(row, rig.ADAM).init, shapes)
    return state, state.method.course.stages(rig.SHAPES, CALLS)


def seen(state: State, call: rig.Call, path: str, step: int) -> int:
    """How many weights the loss sees in a step, after the call before it."""
    mask, forward = jnp.asarray(call.masks[path]), state.method.forward
    if forward is None:
        return int(mask.sum())
    weight = jnp.asarray(call.params[path])
    return int(np.count_nonzero(forward(path, weight, mask, jnp.int32(step))))


@every_row
def test_the_counts_of_each_step_are_known_before_the_run(row: TransformRow):
    state, stages = course(row)
    for step, call in enumerate(rig.trained(row), 1):
        at = int(np.searchsorted(stages.first, step, side="right")) - 1
        want = {path: seen(state, call, path, step) for path in rig.SHAPES}
        got = {path: stages.seen[path][at] for path in rig.SHAPES}
        if stages.loose:
            want, got = sum(want.values()), sum(got.values())
            assert abs(want - got) <= 4, step
        else:
            assert got == want, step


@every_row
def test_gradients_are_looked_at_for_what_is_seen_at_least(row: TransformRow):
    _, stages = course(row)
    assert stages.first[0] == 0
    assert (np.diff(stages.first) > 0).all()
    for path, shape in rig.SHAPES.items():
        assert (stages.graded[path] >= stages.seen[path]).all()
        assert (stages.graded[path] <= np.prod(shape)).all()


def test_a_ranking_over_the_model_is_known_in_total():
    tx = jaxprune.gradual(rig.SGD, 0.75, allocation=jaxprune.allocation.global_())
    state = jax.eval_shape(tx.init, jax.eval_shape(rig.parameters))
    stages = state.method.course.stages(rig.SHAPES, CALLS)
    total = sum(stages.seen.values())
    assert total.tolist() == [1536.0, 384.0]
    assert "the scores divide the budget" in stages.loose
