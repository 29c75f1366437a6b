"""Counts, patterns and zeros at every call, against what the rows promise."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.masks import MaskRule
from jaxprune.transforms import State
from tests import third_party
from tests.members import CALLS, TransformRow
from tests.transforms.common import rig
from tests.transforms.common.rows import every_row


@functools.cache
def kept(row: TransformRow, path: str, sparsity: float) -> int:
    """How many weights the pattern keeps, whichever they are."""
    pattern, shape = MaskRule(row.pattern).pattern_of(path), rig.SHAPES[path]
    units = pattern.units(shape, 1.0 - sparsity)
    anything = jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(shape)
    return int(pattern.mask(anything, units).sum())


@functools.cache
def start(row: TransformRow) -> rig.Call:
    """Before the first call."""
    params = rig.parameters()
    return rig.snapshot(params, rig.transform(row, rig.ADAM).init(params))


@every_row
def test_the_counts_are_exact_after_every_call(row: TransformRow):
    for call, sparsity in zip(rig.trained(row), row.sparsities, strict=True):
        found = {path: int(mask.sum()) for path, mask in call.masks.items()}
        wanted = {path: kept(row, path, sparsity) for path in rig.SHAPES}
        if "moves counts" in row.needs:
            assert abs(sum(found.values()) - sum(wanted.values())) <= 4
        else:
            assert found == wanted


@every_row
def test_masks_obey_the_pattern_as_soon_as_they_can(row: TransformRow):
    rule = MaskRule(row.pattern)
    for call in rig.trained(row)[row.settles :]:
        for path, mask in call.masks.items():
            assert bool(rule.pattern_of(path).holds(jnp.asarray(mask)))


@every_row
def test_pruned_weights_are_exactly_zero_after_every_call(row: TransformRow):
    """In the parameters; where these are stored dense, in what `final_params` makes of them.

    A grown weight is zero in the call in which it grows, and moves from the next on.
    """
    before = start(row)
    for call in rig.trained(row):
        for path, mask in call.masks.items():
            zeros = call.final[path] == 0.0
            if "dense" in row.needs:
                assert zeros.sum() == mask.size - kept(row, path, row.sparsities[-1])
                assert (call.params[path] != 0.0).all()
            else:
                assert zeros[~mask].all()
                assert not zeros[mask & before.masks[path]].any()
                assert call.final[path].tobytes() == call.params[path].tobytes()
        before = call


@every_row
def test_masks_change_when_they_may_and_at_no_other_call(row: TransformRow):
    pairs = enumerate(itertools.pairwise([start(row), *rig.trained(row)]))
    changed = {call for call, (a, b) in pairs if not rig.equal(a.masks, b.masks)}
    rises = {c for c in range(1, CALLS) if row.sparsities[c] != row.sparsities[c - 1]}
    assert rises <= changed
    assert row.changes is None or changed <= set(row.changes)


@every_row
def test_masks_nest_as_the_sparsity_rises(row: TransformRow):
    pairs = itertools.pairwise(rig.trained(row))
    came_back = [(b.masks[p] & ~a.masks[p]).any() for a, b in pairs for p in a.masks]
    assert any(came_back) == ("regrows" in row.needs)


@every_row
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


@every_row
def test_optax_maps_over_what_the_state_has_of_each_weight(row: TransformRow):
    tx, params = rig.transform(row, rig.ADAM), rig.parameters()
    state = tx.init(params)
    mapped = optax.tree.map_params(tx, lambda x: (~x.astype(bool)).astype(x.dtype), state)
    assert isinstance(mapped, State)
    assert optax.tree.get(mapped, "step") == 0
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(mapped), strict=True)
    for before, after in pairs:
        wanted = ~before.astype(bool) if before.shape in shapes else before
        np.testing.assert_array_equal(after, wanted)
