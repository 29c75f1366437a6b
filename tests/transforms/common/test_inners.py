"""Every transform around every optimizer."""

import numpy as np
import pytest

from tests.members import TransformRow
from tests.transforms.common import rig
from tests.transforms.common.inners import INNERS, Inner
from tests.transforms.common.spy import bare, watched

around = pytest.mark.parametrize("inner", INNERS, ids=repr)
alone = pytest.mark.parametrize("inner", [i for i in INNERS if not i.couples], ids=repr)


@around
def test_pruned_weights_are_zero_after_every_call(row: TransformRow, inner: Inner):
    for call, sparsity in zip(watched(row, inner), row.sparsities, strict=True):
        for path, mask in call.after.masks.items():
            assert abs(mask.mean() - (1.0 - sparsity)) < 0.01
            zero = call.after.final[path] == 0.0
            if "dense" in row.needs:
                assert zero.mean() == 0.5
            else:
                assert zero[~mask].all()
                assert not zero[mask & call.before.masks[path]].any() or "regrows" in row.needs


@around
def test_live_weights_move_exactly_as_the_optimizer_says(row: TransformRow, inner: Inner):
    for call in watched(row, inner):
        for path, answer in call.answer.items():
            live = call.after.masks.get(path, np.array(True))
            live = np.broadcast_to(live | ("dense" in row.needs), answer.shape)
            if "rests" in row.needs and path not in rig.EXEMPT:
                rests = call.updates[path] == 0.0
                assert 0 < rests.sum() < rests.size / 2
                live = live & ~rests
            assert call.updates[path][live].tobytes() == answer[live].tobytes()


@around
def test_the_optimizer_sees_the_gradients_that_the_row_says(row: TransformRow, inner: Inner):
    for call in watched(row, inner):
        for path, grad in call.grads.items():
            live = np.broadcast_to(call.before.masks.get(path, np.array(True)), grad.shape)
            seen = call.asked[path]
            if "own gradients" in row.needs and path not in rig.EXEMPT:
                assert (seen != grad).any()
            elif "masked gradients" in row.needs:
                assert seen[live].tobytes() == grad[live].tobytes()
                assert (seen[~live] == 0.0).all()
            else:
                assert seen.tobytes() == grad.tobytes()


@around
def test_the_moments_of_live_weights_are_the_optimizers(row: TransformRow, inner: Inner):
    paths = {shape: path for path, shape in rig.SHAPES.items()}
    for call in watched(row, inner):
        for name, moment in call.moments.items():
            live = np.ones(moment.shape, bool)
            path = paths.get(moment.shape)
            if path is not None and (inner.copies or "moves moments" in row.needs):
                live = call.before.masks[path] & call.after.masks[path]
            assert call.after.inner[name][live].tobytes() == moment[live].tobytes()


@alone
def test_exempt_leaves_train_as_with_the_bare_optimizer(row: TransformRow, inner: Inner):
    for call, params in zip(watched(row, inner), bare(inner), strict=True):
        for path in rig.EXEMPT:
            assert call.after.params[path].tobytes() == params[path].tobytes()
