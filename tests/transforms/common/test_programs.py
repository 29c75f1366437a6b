"""Every transform inside what jax makes of a training step: the same numbers everywhere."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws.measure import compilations
from tests.members import CALLS, TRANSFORMS, TransformRow
from tests.transforms.common import rig
from tests.transforms.common.rows import (
    a_row_a_family,
    core_rows,
    every_row,
    is_core,
    is_family,
    marked,
)


@functools.cache
def compiled(row: TransformRow) -> rig.Step:
    return jax.jit(rig.step_of(rig.transform(row, rig.SGD)), donate_argnums=(0, 1))


def all_gradients() -> Any:
    calls = [rig.gradients(call) for call in range(CALLS)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *calls)


def both(tree: Any) -> Any:
    """Two seeds: the second is the first with another sign."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), tree)


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)


def assert_same(found: tuple[rig.Call, ...], expected: tuple[rig.Call, ...]) -> None:
    for call, (one, other) in enumerate(zip(found, expected, strict=True)):
        for some, others in zip(one, other, strict=True):
            assert rig.equal(some, others), f"call {call}"


@a_row_a_family
def test_jit_is_eager(row: TransformRow):
    assert_same(rig.train(rig.transform(row, rig.SGD), compiled(row)), rig.trained(row, rig.SGD))


BEGUN = [marked(row, "eager", fast=is_family(row)) for row in TRANSFORMS]
BEGUN += [marked(row, "jit", fast=is_core(row)) for row in TRANSFORMS]


@pytest.mark.parametrize(("row", "begun"), BEGUN)
def test_the_third_call_compiles_nothing(row: TransformRow, begun: str):
    params, init = rig.parameters(), rig.transform(row, rig.SGD).init
    state = jax.jit(init)(params) if begun == "jit" else init(params)
    for call in range(2):
        params, state = compiled(row)(params, state, rig.gradients(call))
    grads = rig.gradients(2)
    with compilations() as found:
        compiled(row)(params, state, grads)
    assert not found


@a_row_a_family
def test_parameters_and_state_can_be_donated(row: TransformRow):
    params = rig.parameters()
    state = rig.transform(row, rig.SGD).init(params)
    compiled(row)(params, state, rig.gradients(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state.masks, state.extra)))


@every_row
def test_packed_masks_are_the_same_and_take_a_bit_a_weight(row: TransformRow):
    tx = rig.transform(row, rig.SGD, packed=True)
    assert_same(rig.train(tx), rig.trained(row, rig.SGD))
    stored = jax.tree.leaves(tx.init(rig.parameters()).masks)
    assert sum(leaf.nbytes for leaf in stored) == sum(np.prod(s) // 8 for s in rig.SHAPES.values())


@core_rows
def test_it_can_be_scanned(row: TransformRow):
    tx = rig.transform(row, rig.SGD)
    step = rig.step_of(tx)

    @jax.jit
    def run(params: Any, grads: Any) -> Any:
        def body(carry: Any, grads: Any) -> Any:
            return step(*carry, grads), None

        return jax.lax.scan(body, (params, tx.init(params)), grads)[0]

    found = rig.snapshot(*run(rig.parameters(), all_gradients()))
    assert_same((found,), rig.trained(row, rig.SGD)[-1:])


@a_row_a_family
def test_it_can_be_mapped_over_seeds_and_still_skips_what_is_not_due(row: TransformRow):
    tx = rig.transform(row, rig.SGD)
    params = both(rig.parameters())
    state = jax.vmap(tx.init)(params)
    step = jax.jit(jax.vmap(rig.step_of(tx))).lower(params, state, both(rig.gradients(0))).compile()
    for call in range(CALLS):
        params, state = step(params, state, both(rig.gradients(call)))
    first = jax.tree.map(lambda leaf: leaf[0], (params, state))
    assert_same((rig.snapshot(*first),), rig.trained(row, rig.SGD)[-1:])
    assert " conditional(" in step.as_text() or row.changes is None


@every_row
def test_init_and_update_can_be_traced_on_shapes(row: TransformRow):
    tx, params = rig.transform(row, rig.SGD), rig.parameters()
    state = jax.eval_shape(tx.init, params)
    assert shapes(state) == shapes(tx.init(params))
    assert shapes(jax.eval_shape(rig.step_of(tx), params, state, params)[1]) == shapes(state)
