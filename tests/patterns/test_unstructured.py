"""Unstructured: an exact count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import Unstructured
from tests.patterns import references


@pytest.mark.parametrize(
    ("density", "kept"), [(1.0, 10), (0.25, 2), (0.35, 4), (0.01, 1), (0.0, 0)]
)
def test_the_count_is_rounded_half_to_even_and_never_to_nothing(density: float, kept: int):
    assert Unstructured().units((2, 5), density) == kept


def test_a_traced_density_gives_the_same_count_where_float32_can():
    count = jax.jit(lambda density: Unstructured().units((2, 5), density))
    for density in (1.0, 0.25, 0.35, 0.01, 0.0):
        got = count(jnp.float32(density))
        assert got.dtype == jnp.int32
        assert int(got) == Unstructured().units((2, 5), density)


@pytest.mark.parametrize("kept", [0, 1, 7, 24])
def test_it_keeps_the_best(kept: int, rng: np.random.Generator):
    scores = rng.integers(0, 5, (4, 3, 2)).astype(np.float32)
    got = Unstructured().mask(jnp.asarray(scores), kept)
    np.testing.assert_array_equal(got, references.unstructured(scores, kept))


def test_every_mask_holds():
    assert bool(Unstructured().holds(jnp.array([True, False])))
