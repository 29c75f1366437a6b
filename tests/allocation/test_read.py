"""from_masks: densities are read off masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import allocation, initial, schedules

SHAPES = {"a": (8, 4), "b": (16, 8)}


@pytest.fixture
def masks() -> dict[str, np.ndarray]:
    return {"a": np.arange(32).reshape(8, 4) < 20, "b": np.arange(128).reshape(16, 8) < 12}


def test_random_masks_with_the_ratios_of_masks_keep_as_many_of_each(masks: dict[str, np.ndarray]):
    read = allocation.from_masks(masks)
    params = {path: jnp.ones(shape) for path, shape in SHAPES.items()}
    drawn = initial.random_masks(params, 0.8, jax.random.key(1), allocation=read, where=".*")
    assert {path: int(mask.sum()) for path, mask in drawn.items()} == {"a": 20, "b": 12}
    assert not np.array_equal(drawn["a"], masks["a"])


def test_at_a_lower_sparsity_the_zeros_are_fewer_in_proportion(masks: dict[str, np.ndarray]):
    found = allocation.from_masks(masks)(SHAPES, 0.4)
    assert found == pytest.approx({"a": 1 - 12 / 64, "b": 1 - 116 / 256})


def test_a_layer_without_weights_stays_without(masks: dict[str, np.ndarray]):
    masks["b"] = np.zeros((16, 8), bool)
    assert allocation.from_masks(masks)(SHAPES, 0.875)["b"] == 0.0


def test_a_ramp_ends_at_the_ratios(masks: dict[str, np.ndarray]):
    read = allocation.from_masks(masks)
    ends = [read(SHAPES, schedules.linear(0.0, 0.8, begin=0, end=4).at(step)) for step in (0, 4)]
    assert set(ends[0].values()) == {1.0}
    assert ends[1] == pytest.approx({"a": 20 / 32, "b": 12 / 128})


def test_a_sparsity_above_that_of_the_masks_is_refused(masks: dict[str, np.ndarray]):
    with pytest.raises(ValueError) as error:
        allocation.from_masks(masks)(SHAPES, 0.9)
    assert str(error.value) == (
        "from_masks cannot serve sparsity=0.9: its masks have 0.8, and their ratios do not say "
        "where more could go. Read them off sparser masks."
    )


def test_a_path_without_a_mask_is_refused(masks: dict[str, np.ndarray]):
    with pytest.raises(ValueError) as error:
        allocation.from_masks(masks)(SHAPES | {"c": (2, 2)}, 0.5)
    assert str(error.value) == (
        "from_masks has no mask for 'c'. Its masks are those of 'a', 'b'. Select the same "
        "parameters with where=."
    )


def test_what_is_not_a_mask_is_refused():
    with pytest.raises(TypeError) as error:
        allocation.from_masks({"a": jnp.ones((2, 2))})
    assert str(error.value) == (
        "the mask of 'a' has dtype float32, not bool. Masks are boolean, True = kept; convert with "
        "mask.astype(bool)."
    )
    with pytest.raises(
        ValueError, match=r"^the mask of 'a' is empty\. Leave this parameter out\.$"
    ):
        allocation.from_masks({"a": jnp.ones((0, 2), bool)})
    with pytest.raises(ValueError, match=r"^masks must hold at least one mask, got none\.$"):
        allocation.from_masks({"a": None})


def test_packed_masks_are_read_too():
    params = {"a": jnp.arange(1.0, 33.0).reshape(8, 4)}
    tx = jaxprune.static(optax.sgd(0.1), jaxprune.prune(params, 0.5)[1], packed=True)
    read = allocation.from_masks(tx.init(params).masks)
    assert read({"a": (8, 4)}, 0.5) == {"a": 0.5}
