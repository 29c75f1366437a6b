"""Counts, patterns and zeros at every call, against what the rows promise."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import optax

from tests import third_party
from tests.members import CALLS, TransformRow
from tests.transforms.common import rig

EVERY_TRANSFORM = True  # read by conftest


def kept(row: TransformRow, shape: tuple[int, ...], sparsity: float) -> int:
    """How many weights the pattern keeps, whichever they are."""
    units = row.pattern.units(shape, 1.0 - sparsity)
    anything = jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(shape)
    return int(row.pattern.mask(anything, units).sum())


def test_the_counts_are_exact_after_every_call(row: TransformRow):
    for call, sparsity in zip(rig.trained(row), row.sparsities, strict=True):
        found = {path: int(mask.sum()) for path, mask in call.masks.items()}
        wanted = {path: kept(row, shape, sparsity) for path, shape in rig.SHAPES.items()}
        if "moves counts" in row.needs:
            assert abs(sum(found.values()) - sum(wanted.values())) <= 4
        else:
            assert found == wanted


def test_the_last_masks_obey_the_pattern(row: TransformRow):
    last = max(row.changes) if row.changes else 0
    for call in rig.trained(row)[last:]:
        for mask in call.masks.values():
            assert bool(row.pattern.holds(jnp.asarray(mask)))


def test_pruned_weights_are_exactly_zero_after_every_call(row: TransformRow):
    stores_zeros = "dense" not in row.needs
    for call in rig.trained(row):
        for path, mask in call.masks.items():
            zeros = call.final[path] == 0.0
            if stores_zeros:
                assert zeros[~mask].all()
                assert "regrows" in row.needs or not zeros[mask].any()  # grown weights start at 0
                assert call.final[path].tobytes() == call.params[path].tobytes()
            else:
                assert zeros.sum() == mask.size - kept(row, mask.shape, row.sparsities[-1])
                assert (call.params[path] != 0.0).all()


def test_masks_change_when_they_may_and_at_no_other_call(row: TransformRow):
    state = rig.transform(row, rig.ADAM).init(rig.parameters())
    before = [rig.snapshot(rig.parameters(), state), *rig.trained(row)]
    pairs = enumerate(itertools.pairwise(before))
    changed = {call for call, (a, b) in pairs if not rig.equal(a.masks, b.masks)}
    rises = {c for c in range(1, CALLS) if row.sparsities[c] != row.sparsities[c - 1]}
    assert rises <= changed
    assert row.changes is None or changed <= set(row.changes)


def test_masks_nest_as_the_sparsity_rises(row: TransformRow):
    pairs = itertools.pairwise(rig.trained(row))
    came_back = [(b.masks[p] & ~a.masks[p]).any() for a, b in pairs for p in a.masks]
    assert any(came_back) == ("regrows" in row.needs)


def test_exempt_leaves_train_as_with_the_bare_optimizer(row: TransformRow):
    bare = third_party.inner(rig.ADAM)
    params = rig.parameters()
    state = bare.init(params)
    for call in range(CALLS):
        updates, state = bare.update(rig.gradients(call), state, params)
        params = optax.apply_updates(params, updates)
        found = rig.trained(row)[call].params
        assert found["hidden/bias"].tobytes() == np.asarray(params["hidden"]["bias"]).tobytes()
        assert found["norm/scale"].tobytes() == np.asarray(params["norm"]["scale"]).tobytes()
