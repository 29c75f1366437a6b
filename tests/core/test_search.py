"""Counts of arrays with more entries than 32 bits can count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune._core import counts, search


def test_the_count_of_a_large_array_is_that_of_a_small_one(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    flags = rng.integers(0, 2, (2, 4, 3, 3)).astype(bool)
    monkeypatch.setattr(counts, "MOST", 127 + 40)
    for shards in (1, 8):  # below the most, and above
        found = search.total([jnp.asarray(flag) for flag in flags], (), shards)
        assert [int(count) for count in found] == flags.sum((1, 2, 3)).tolist()


@pytest.mark.parametrize("shards", [1, 8])
def test_entries_that_32_bits_do_not_count_are_not_added_as_integers(shards: int):
    flags = jax.ShapeDtypeStruct((3 * 2**15, 2**15 // shards), jnp.bool_)
    program = jax.make_jaxpr(lambda x: search.total([x], (), shards))(flags)
    (added,) = (eqn for eqn in program.eqns if eqn.primitive.name.startswith("reduce"))
    assert added.outvars[0].aval.dtype == jnp.float32
    assert program.out_avals[0].dtype == jnp.int32
