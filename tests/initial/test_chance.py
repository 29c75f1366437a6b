"""Random masks: exact counts or independent draws, by key and path."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import allocation, initial


@pytest.fixture
def params() -> Any:
    return {"one": jnp.ones((64, 64)), "two": jnp.ones((64, 16)), "bias": jnp.ones(64)}


def test_exact_counts_are_those_of_the_allocation(params: Any, key: jax.Array):
    masks = initial.random_masks(params, 0.9, key)
    densities = allocation.erdos_renyi_kernel({"one": (64, 64), "two": (64, 16)}, 0.9)
    assert int(masks["one"].sum() + masks["two"].sum()) == 512
    assert int(masks["one"].sum()) == pytest.approx(densities["one"] * 4096, abs=1)
    assert jax.tree.leaves(masks["bias"]) == []


def test_bernoulli_counts_vary_around_them(params: Any, key: jax.Array):
    keys = jax.random.split(key, 16)
    drawn = [
        int(initial.random_masks(params, 0.75, k, exact=False, where="one")["one"].sum())
        for k in keys
    ]
    spread = np.sqrt(4096 * 0.25 * 0.75)
    assert len(set(drawn)) > 4
    assert abs(np.mean(drawn) - 1024) < 4 * spread / 4
    assert max(abs(np.array(drawn) - 1024)) < 5 * spread


def test_a_density_of_1_keeps_all_and_of_0_nothing(params: Any, key: jax.Array):
    ends = {"one": np.ones((64, 64), bool), "two": np.zeros((64, 16), bool)}
    read = allocation.from_masks(ends)
    masks = initial.random_masks(params, 0.2, key, allocation=read, exact=False)
    assert masks["one"].all()
    assert not masks["two"].any()


def test_the_masks_depend_on_the_key_and_the_path_alone(params: Any, key: jax.Array):
    first = initial.random_masks(params, 0.5, key, allocation=allocation.uniform)
    alone = initial.random_masks({"two": params["two"]}, 0.5, key, allocation=allocation.uniform)
    other = initial.random_masks(params, 0.5, jax.random.key(1), allocation=allocation.uniform)
    np.testing.assert_array_equal(first["two"], alone["two"])
    assert not np.array_equal(first["two"], other["two"])


def test_a_sparsity_out_of_range_is_refused(params: Any, key: jax.Array):
    with pytest.raises(
        ValueError, match=r"^sparsity must be a finite number in \[0, 1\), got 1\.0"
    ):
        initial.random_masks(params, 1.0, key)
