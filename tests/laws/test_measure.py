"""The counters of the laws count."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.laws import measure


def test_a_compilation_is_counted():
    double = jax.jit(lambda x: x * 2 + 1)
    with measure.compilations() as first:
        double(np.float32(1.0))
    with measure.compilations() as second:
        double(np.float32(2.0))
    assert len(first) == 1
    assert not second


def test_a_gather_is_found(mesh: Mesh):
    x = jax.device_put(jnp.arange(64.0), NamedSharding(mesh, PartitionSpec("data")))
    whole = NamedSharding(mesh, PartitionSpec())
    gather = jax.jit(lambda x: x + 1, out_shardings=whole)
    with jax.set_mesh(mesh):
        found = measure.collectives(gather.lower(x).compile())
    assert found == {"all-gather": 64}


def test_a_sort_is_found():
    found = measure.collectives(jax.jit(jnp.sort).lower(jnp.arange(8.0)).compile())
    assert found == {"sort": 8}


def test_the_largest_of_many_arrays_is_found():
    many = (
        "  %ar = (s32[], s32[], s32[], s32[], s32[], /*index=5*/f32[7,2]{1,0}) "
        "all-reduce(%a, %b, %c, %d, %e, %f), to_apply=%add\n"
        "  %one = s32[] all-reduce(%x), to_apply=%add"
    )
    assert measure.collectives(many) == {"all-reduce": 14}
