"""What a compiled program must not compute too early, and what it may."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import jaxprune
from jaxprune._core import turns

MASK, SCORES = np.array([True, False]), np.array([3.0, -np.inf], np.float32)


def barriers(function: Callable[..., jax.Array]) -> int:
    """Count what orders a compiled function of a mask and scores."""
    return jax.jit(function).lower(MASK, SCORES).as_text().count("optimization_barrier")


def test_scores_wait_for_the_mask_of_the_leaf_before():
    assert barriers(turns.after) == 1
    assert barriers(lambda mask, scores: turns.after(None, scores)) == 0
    np.testing.assert_array_equal(jax.jit(turns.after)(MASK, SCORES), SCORES)


def test_outside_jit_they_are_there():
    scores = jnp.asarray(SCORES)
    assert turns.after(jnp.asarray(MASK), scores) is scores


@pytest.mark.parametrize("mesh", ["auto"], indirect=True)
def test_inside_shard_map_they_keep_their_mesh_axes(mesh: Mesh):
    specs = (P(("data", "model")), P("data"))
    after = jax.shard_map(turns.after, mesh=mesh, in_specs=specs, out_specs=P("data"))
    scores = np.arange(8, dtype=np.float32)
    np.testing.assert_array_equal(jax.jit(after)(np.ones(8, bool), scores), scores)


def test_masks_change_once_there_are_gradients():
    params = {"kernel": jnp.ones((8, 8))}
    tx = jaxprune.gradual(optax.sgd(0.1), jaxprune.schedules.cubic(0.0, 0.5, begin=0, end=9))
    jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params).jaxpr
    names = [eqn.primitive.name for eqn in jaxpr.eqns]
    due = names.index("optimization_barrier")
    assert [var.aval.shape for var in jaxpr.eqns[due].invars] == [(), (8, 8)]
    assert due < names.index("cond")
