"""What holds for every score that takes a function and data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.laws.measure import collectives, compilations
from tests.members import DATA_SCORES, Row

every = pytest.mark.parametrize("row", DATA_SCORES, ids=repr)
CLOSE = 1e-5  # of the largest: sums are taken in another order


def matrices(key: jax.Array, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    keys = jax.random.split(key, 2)
    return {
        "one": jax.random.normal(keys[0], (8, 16), dtype),
        "two": jax.random.normal(keys[1], (16, 4), dtype),
    }


def assert_close(got: Any, want: Any) -> None:
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=CLOSE * np.abs(theirs).max())


@every
def test_any_container_gets_the_same_scores(row: Row, key: jax.Array):
    params = matrices(key)
    want = row.make()(params)
    one, two = params.values()
    for held in ([one, (two,)], {"a": one, "b": {"kernel": two}, "c": None}):
        found = row.make()(held)
        assert jax.tree.structure(found) == jax.tree.structure(held)
        assert_close(found, want)


@every
def test_only_signed_scores_fall_below_zero_and_all_tell_weights_apart(row: Row, key: jax.Array):
    leaves = jax.tree.leaves(row.make()(matrices(key)))
    assert any(bool((leaf < 0).any()) for leaf in leaves) == ("signed" in row.needs)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)
    for found in leaves:
        counted = np.asarray(found)[np.asarray(found) != 0]  # some units are dead
        assert len(np.unique(counted)) == counted.size > found.size / 4


@every
def test_narrow_weights_are_scored_in_float32(row: Row, key: jax.Array):
    narrow = matrices(key, jnp.bfloat16)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
    for got, want in zip(
        jax.tree.leaves(row.make()(narrow)), jax.tree.leaves(row.make()(wide)), strict=True
    ):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=0.05 * np.abs(want).max())


@every
def test_jit_changes_nothing(row: Row, key: jax.Array):
    params = matrices(key)
    assert_close(jax.jit(row.make())(params), row.make()(params))


@every
def test_the_second_call_compiles_nothing(row: Row, key: jax.Array):
    row.make()(matrices(key))
    with compilations() as found:
        row.make()(matrices(key))
    assert not found


@every
def test_the_values_of_pruned_weights_do_not_count(row: Row, key: jax.Array):
    params = matrices(key)
    masks = {"one": jax.random.bernoulli(key, 0.7, (8, 16))}
    others = params | {"one": jnp.where(masks["one"], params["one"], 7.0)}
    got, want = row.make()(params, masks), row.make()(others, masks)
    kept = {"one": masks["one"], "two": jnp.ones((16, 4), bool)}
    got, want = (
        {path: np.where(mask, tree[path], 0.0) for path, mask in kept.items()}
        for tree in (got, want)
    )
    # What they would add if they came back is part of the sum that some are divided by.
    scale = np.abs(want["two"]).sum() / np.abs(got["two"]).sum()
    assert_close({path: leaf * scale for path, leaf in got.items()}, want)


@every
def test_a_sharded_weight_is_scored_where_it_lives(row: Row, key: jax.Array, mesh: Mesh):
    params = {"one": matrices(key)["one"]}
    want = row.make()(params)
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    params = jax.device_put(params, {"one": sharding})
    with jax.set_mesh(mesh):
        compiled = jax.jit(row.make()).lower(params).compile()
        got = compiled(params)
    assert max(collectives(compiled).values(), default=0) <= params["one"].shape[0] * 5
    assert got["one"].sharding.is_equivalent_to(sharding, 2)
    assert_close(got, want)
