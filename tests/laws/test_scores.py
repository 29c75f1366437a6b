"""What holds for every score."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.laws.measure import collectives, compilations
from tests.members import SCORES, Row

every = pytest.mark.parametrize("row", SCORES, ids=repr)
reads_weights = pytest.mark.parametrize(
    "row", [row for row in SCORES if "key" not in row.needs], ids=repr
)
floats = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])


class Pair(NamedTuple):
    left: Any
    right: Any


def leaf(key: jax.Array, shape: tuple[int, ...] = (8, 4), dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(key, shape, dtype)


def containers(weight: jax.Array) -> list[Any]:
    return [
        {"a": weight, "b": {"kernel": weight}},
        [weight, (weight,)],
        Pair(weight, {"w": weight}),
        weight,
    ]


@every
def test_any_container_keeps_its_structure_and_shapes(row: Row, key: jax.Array):
    for params in containers(leaf(key)):
        found = row.make()(params, params)
        assert jax.tree.structure(found) == jax.tree.structure(params)
        assert all(s.shape == (8, 4) for s in jax.tree.leaves(found))


@every
def test_what_is_absent_passes_through(row: Row, key: jax.Array):
    params = {"a": leaf(key), "b": None, "c": optax.MaskedNode()}
    for grads in (params, {"a": leaf(key), "b": leaf(key), "c": leaf(key)}):
        found = row.make()(params, grads)
        assert found["b"] is None
        assert found["c"] == optax.MaskedNode()
        assert found["a"].shape == (8, 4)


@every
@floats
def test_scores_are_finite_numbers_from_zero_on(row: Row, key: jax.Array, dtype: Any):
    params, grads = {"w": leaf(key, dtype=dtype)}, {"w": leaf(jax.random.fold_in(key, 1))}
    found = row.make()(params, grads)["w"]
    assert jnp.issubdtype(found.dtype, jnp.floating)
    assert bool(jnp.isfinite(found).all() & (found >= 0).all())


@every
def test_scores_tell_weights_apart(row: Row, key: jax.Array):
    found = row.make()({"w": leaf(key)}, {"w": leaf(jax.random.fold_in(key, 1))})["w"]
    assert len(np.unique(found)) == found.size


@reads_weights
def test_a_score_does_not_depend_on_the_place_of_the_weight(row: Row, key: jax.Array):
    params, grads = leaf(key), leaf(jax.random.fold_in(key, 1))
    order = jax.random.permutation(key, params.size)

    def moved(x: jax.Array) -> jax.Array:
        return x.ravel()[order].reshape(2, 4, 4)

    score = row.make()
    got = score({"w": moved(params)}, {"w": moved(grads)})["w"]
    np.testing.assert_array_equal(got, moved(score({"w": params}, {"w": grads})["w"]))


@every
def test_jit_changes_nothing(row: Row, key: jax.Array):
    params = {"w": leaf(key)}
    score = row.make()
    np.testing.assert_array_equal(jax.jit(score)(params, params)["w"], score(params, params)["w"])


@every
def test_the_second_call_compiles_nothing(row: Row, key: jax.Array):
    score = row.make()
    params, others = {"w": leaf(key)}, {"w": leaf(jax.random.fold_in(key, 1))}
    for fn in (score, jax.jit(score)):
        fn(params, params)
        with compilations() as found:
            fn(others, others)
        assert not found


@every
def test_a_sharded_weight_is_scored_where_it_lives(row: Row, key: jax.Array, mesh: Mesh):
    params = {"w": leaf(key, (16, 8))}
    score = row.make()
    want = score(params, params)["w"]
    sharding = NamedSharding(mesh, PartitionSpec("data", "model"))
    params = jax.device_put(params, {"w": sharding})
    with jax.set_mesh(mesh):
        compiled = jax.jit(score).lower(params, params).compile()
        got = compiled(params, params)["w"]
    assert not collectives(compiled)
    assert got.sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_array_equal(got, want)
