"""Every transform around every optimizer.

In the fast suite each transform meets Adam and each common optimizer one transform.
"""

import numpy as np
import pytest

from tests.members import TRANSFORMS, TransformRow
from tests.transforms.common import rig
from tests.transforms.common.inners import ADAM, COMMON, INNERS, Inner
from tests.transforms.common.rows import marked
from tests.transforms.common.spy import bare, watched


def is_fast(line: int, place: int) -> bool:
    """Tell whether a pair lies on the diagonal that wraps around, or has Adam."""
    on_it = INNERS[place] in COMMON and place % len(TRANSFORMS) == line
    return on_it or INNERS[place] is ADAM


PAIRS = [
    marked(row, inner, fast=is_fast(line, place))
    for line, row in enumerate(TRANSFORMS)
    for place, inner in enumerate(INNERS)
]
pairs = pytest.mark.parametrize(("row", "inner"), PAIRS)


@pairs
def test_pruned_weights_are_zero_after_every_call(row: TransformRow, inner: Inner):
    """A grown weight is zero in the call in which it grows, and moves from the next on."""
    for call, sparsity in zip(watched(row, inner), row.sparsities, strict=True):
        for path, mask in call.after.masks.items():
            assert abs(mask.mean() - (1.0 - sparsity)) < 0.01 or "moves counts" in row.needs
            zero = call.after.final[path] == 0.0
            if "dense" in row.needs:
                assert zero.mean() == 0.5
            else:
                assert zero[~mask].all()
                stuck = inner.lingers and "regrows" in row.needs
                assert stuck or not zero[mask & call.before.masks[path]].any()


@pairs
def test_live_weights_move_exactly_as_the_optimizer_says(row: TransformRow, inner: Inner):
    """Where a method lets pruned weights rest, their update is −0.0, which moves nothing."""
    for call in watched(row, inner):
        for path, answer in call.answer.items():
            update, live = call.updates[path], call.after.masks.get(path, np.array(True))
            if "rests" in row.needs and path not in rig.EXEMPT:
                still = (update == 0.0) & np.signbit(update)
                moves = live | ~still
                assert still.any()
                assert moves.mean() > 0.5 or inner.lingers
            else:
                moves = np.broadcast_to(live | ("dense" in row.needs), answer.shape)
            assert update[moves].tobytes() == answer[moves].tobytes()


@pairs
def test_the_optimizer_sees_the_gradients_that_the_row_says(row: TransformRow, inner: Inner):
    """Where masks hide gradients, so do those of a weight that this call drops or grows."""
    for call in watched(row, inner):
        for path, grad in call.grads.items():
            both = (masks.get(path, True) for masks in (call.before.masks, call.after.masks))
            live = np.broadcast_to(np.logical_and(*both), grad.shape)
            seen = call.asked[path]
            if "own gradients" in row.needs and path not in rig.EXEMPT:
                assert (seen != grad).any()
            elif "masked gradients" in row.needs:
                assert seen[live].tobytes() == grad[live].tobytes()
                assert (seen[~live] == 0.0).all()
            else:
                assert seen.tobytes() == grad.tobytes()


@pairs
def test_the_moments_of_live_weights_are_the_optimizers(row: TransformRow, inner: Inner):
    paths = {shape: path for path, shape in rig.SHAPES.items()}
    for call in watched(row, inner):
        for name, moment in call.moments.items():
            live = np.ones(moment.shape, bool)
            path = paths.get(moment.shape)
            if path is not None and (inner.copies or "moves moments" in row.needs):
                live = call.before.masks[path] & call.after.masks[path]
            assert call.after.inner[name][live].tobytes() == moment[live].tobytes()


@pairs
def test_exempt_leaves_train_as_with_the_bare_optimizer(row: TransformRow, inner: Inner):
    """But for an optimizer that couples leaves: there what is pruned matters to the others."""
    for call, params in zip(watched(row, inner), bare(inner), strict=True):
        for path in rig.EXEMPT:
            same = call.after.params[path].tobytes() == params[path].tobytes()
            assert same or inner.couples
