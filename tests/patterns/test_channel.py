"""Channels: whole slices by their means."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import Channel


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_the_slices_with_the_best_means_are_kept(axis: int, rng: np.random.Generator):
    scores = rng.standard_normal((4, 5, 6)).astype(np.float32)
    others = tuple(a for a in range(3) if a != axis % 3)
    best = np.argsort(-scores.mean(others))[:2]
    pattern = Channel(axis)
    got = np.moveaxis(np.asarray(pattern.mask(jnp.asarray(scores), 2)), axis, 0)
    assert sorted(best) == [i for i, part in enumerate(got) if part.all()]
    assert got.sum() == 2 * got[0].size


def test_a_vector_has_slices_of_one():
    got = Channel(0).mask(jnp.array([1.0, 3.0, 2.0]), 2)
    np.testing.assert_array_equal(got, [False, True, True])


def test_means_are_taken_in_float32():
    scores = jnp.full((4096, 2), 60_000.0, jnp.float16).at[:, 0].set(50_000.0)
    np.testing.assert_array_equal(Channel(1).mask(scores, 1)[0], [False, True])


def test_units_are_slices():
    assert Channel(-1).units((3, 8), 0.5) == 4
    assert Channel(0).units((3, 8), 0.01) == 1


def test_a_broken_slice_does_not_hold():
    mask = jnp.array([[True, False], [True, False]])
    assert bool(Channel(1).holds(mask))
    assert not bool(Channel(0).holds(mask))


def test_a_parameter_without_the_axis_is_named():
    with pytest.raises(ValueError) as error:
        Channel(2).check("dense/kernel", (6, 8))
    assert str(error.value) == (
        "Channel(axis=2) does not fit 'dense/kernel' of shape (6, 8): it has no axis 2. "
        "Give another axis, or exclude this parameter with where=."
    )


@pytest.mark.parametrize(
    ("axis", "shown"), [(1.0, "1.0 of type float"), ((0, 1), "(0, 1) of type tuple")]
)
def test_an_axis_is_an_integer(axis: Any, shown: str):
    with pytest.raises(TypeError) as error:
        Channel(axis)
    assert str(error.value) == (
        f"Channel: axis must be an integer, got {shown}. "
        "It is the axis along which slices are counted."
    )
