"""Blocks against a slow reference; the shapes and arguments that they refuse."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxprune import Block
from tests.patterns import references


@pytest.mark.parametrize(
    ("pattern", "shape"),
    [
        (Block((2, 4)), (8, 12)),
        (Block((4,)), (3, 2, 8)),
        (Block((2, 2)), (3, 4, 6)),
        (Block((2, 3, 2)), (4, 6, 4)),
        (Block((2, 4), pad=True), (7, 10)),
        (Block((16, 16), pad=True), (3, 40)),
    ],
    ids=str,
)
def test_the_blocks_with_the_best_means_are_kept(
    pattern: Block, shape: tuple[int, ...], rng: np.random.Generator
):
    scores = rng.standard_normal(shape).astype(np.float32)
    select, blocks = jax.jit(pattern.mask), pattern.units(shape, 1.0)
    for kept in (0, 1, blocks // 2, blocks):
        got = select(jnp.asarray(scores), jnp.int32(kept))
        np.testing.assert_array_equal(got, references.block(scores, kept, pattern.shape))
        assert bool(pattern.holds(got))


def test_a_short_block_at_the_edge_is_not_at_a_disadvantage():
    scores = jnp.ones((2, 5)).at[:, 4].set(1.5)
    got = Block((2, 4), pad=True).mask(scores, 1)
    np.testing.assert_array_equal(got[0], [False] * 4 + [True])


def test_means_are_taken_in_float32():
    scores = jnp.full((64, 64), 60_000.0, jnp.float16).at[:32].set(50_000.0)  # a sum overflows
    got = Block((32, 64)).mask(scores, 1)
    assert not bool(got[:32].any())
    assert bool(got[32:].all())


@pytest.mark.parametrize(
    ("pattern", "shape", "density", "units"),
    [
        (Block((2, 4)), (8, 12), 0.5, 6),
        (Block((2, 4), pad=True), (7, 10), 1.0, 12),
        (Block((2, 4)), (8, 12), 0.01, 1),
        (Block((4,)), (3, 2, 8), 0.5, 6),
    ],
    ids=str,
)
def test_units_are_blocks(pattern: Block, shape: tuple[int, ...], density: float, units: int):
    assert pattern.units(shape, density) == units


def test_a_broken_block_does_not_hold():
    pattern = Block((2, 2), pad=True)
    mask = jnp.array([[True, True, False], [True, True, False], [False, False, True]])
    assert bool(pattern.holds(mask))
    assert not bool(pattern.holds(mask.at[0, 0].set(False)))
    assert not bool(pattern.holds(mask.at[0, 2].set(True)))


@pytest.mark.parametrize("spec", [("data",), ("model", "data")], ids=str)
def test_shards_that_cut_blocks_give_the_same_mask(
    spec: tuple[Any, ...], key: jax.Array, mesh: Mesh
):
    scores = jax.random.normal(key, (16, 16))
    pattern = Block((8, 8))
    want = pattern.mask(scores, 2)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    with jax.set_mesh(mesh):
        got = jax.jit(pattern.mask)(jax.device_put(scores, sharding), jnp.int32(2))
    np.testing.assert_array_equal(got, want)
    assert got.sharding.is_equivalent_to(sharding, 2)


@pytest.mark.parametrize(
    ("pattern", "shape", "text"),
    [
        (
            Block((4, 4)),
            (6, 8),
            "Block(shape=(4, 4)) does not fit 'dense/kernel' of shape (6, 8): axis 0 has length 6, "
            "not a multiple of 4. Pass pad=True, another block, or exclude this parameter with "
            "where=.",
        ),
        (
            Block((4, 3)),
            (2, 8, 8),
            "Block(shape=(4, 3)) does not fit 'dense/kernel' of shape (2, 8, 8): axis 2 has length "
            "8, not a multiple of 3. Pass pad=True, another block, or exclude this parameter with "
            "where=.",
        ),
        (
            Block((4, 4), pad=True),
            (8,),
            "Block(shape=(4, 4), pad=True) does not fit 'dense/kernel' of shape (8,): a block has "
            "2 axes, the parameter 1. Pass a block of fewer axes, or exclude this parameter with "
            "where=.",
        ),
    ],
    ids=["first", "last", "rank"],
)
def test_a_parameter_that_does_not_fit_is_named(pattern: Block, shape: tuple[int, ...], text: str):
    with pytest.raises(ValueError) as error:
        pattern.check("dense/kernel", shape)
    assert str(error.value) == text


@pytest.mark.parametrize("shape", [(), 16, None])
def test_a_block_needs_a_shape(shape: Any):
    with pytest.raises(ValueError) as error:
        Block(shape)
    assert str(error.value) == (
        f"Block: shape must be a tuple of one size or more, got {shape!r}. "
        "Block((16, 16)) tiles the last two axes."
    )


def test_a_block_has_no_empty_side():
    with pytest.raises(ValueError) as error:
        Block((4, 0))
    assert str(error.value) == (
        "Block: shape must hold sizes of 1 or more, got (4, 0). "
        "Block((16, 16)) tiles the last two axes."
    )


def test_a_size_is_an_integer():
    sizes: Any = (4, 2.0)
    with pytest.raises(TypeError) as error:
        Block(sizes)
    assert str(error.value) == (
        "Block: shape must be an integer, got 2.0 of type float. "
        "It is the length of a block along one of the last axes."
    )
