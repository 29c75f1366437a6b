"""What holds for every selection: the k largest by a stable sort, however they are computed."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxprune
from tests import quick
from tests.core import reference
from tests.properties import draws

SHAPE = (3, 4, 5)
SIZE = 60
AXES = (-1, 0, (2, 0))

counts = st.integers(0, SIZE)
finite = draws.scores(SHAPE, "float32", nan=False)


# Inside jit NaN is allowed and k is traced.
traced = quick.jit(jaxprune.top_k_mask)
along = quick.jit(jaxprune.top_k_mask, static_argnames="axis")
mapped = quick.jit(jax.vmap(jaxprune.top_k_mask))
together = quick.jit(jaxprune.global_top_k_mask)


@pytest.mark.parametrize("dtype", draws.DTYPES)
@given(data=st.data(), k=counts)
def test_the_mask_is_that_of_a_stable_sort(dtype: str, data: st.DataObject, k: int):
    scores = data.draw(draws.scores(SHAPE, dtype))
    mask = traced(scores, np.int32(k))
    assert int(mask.sum()) == k
    np.testing.assert_array_equal(mask, reference.top_k(scores, k))


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64"])
@given(data=st.data(), k=counts)
def test_64_bits_are_compared_as_such(dtype: str, data: st.DataObject, k: int):
    scores = data.draw(draws.scores(SHAPE, dtype))
    with jax.enable_x64(True):
        mask = traced(scores, np.int64(k))
    np.testing.assert_array_equal(mask, reference.top_k(scores, k))


@given(scores=finite, k=counts)
def test_jit_and_eager_agree(scores: np.ndarray, k: int):
    np.testing.assert_array_equal(jaxprune.top_k_mask(scores, k), traced(scores, np.int32(k)))


@given(scores=finite, k=st.integers(-(2**31), 2**31 - 1))
def test_a_traced_k_is_clipped(scores: np.ndarray, k: int):
    clipped = min(max(k, 0), SIZE)
    np.testing.assert_array_equal(traced(scores, np.int32(k)), reference.top_k(scores, clipped))


@pytest.mark.parametrize("axis", AXES)
@given(data=st.data())
def test_along_axes_every_position_keeps_its_own_k(axis: Any, data: st.DataObject):
    scores = data.draw(draws.scores(SHAPE, "bfloat16"))
    axes = [a % 3 for a in (axis if isinstance(axis, tuple) else (axis,))]
    reduced = [1 if a in axes else n for a, n in enumerate(SHAPE)]
    most = int(np.prod([SHAPE[a] for a in axes]))
    seed = data.draw(st.integers(0, 2**32 - 1))
    k = np.random.default_rng(seed).integers(0, most + 1, reduced, np.int32)
    mask = along(scores, k, axis=axis)
    np.testing.assert_array_equal(mask, reference.top_k_along(scores, k, axes))


@given(data=st.data())
def test_leaves_of_several_widths_are_ranked_together(data: st.DataObject):
    shapes = {"float32": (4, 5), "bfloat16": (7,), "float16": (2, 3, 2)}
    leaves = [data.draw(draws.scores(shape, dtype)) for dtype, shape in shapes.items()]
    k = data.draw(st.integers(0, sum(leaf.size for leaf in leaves)))
    empty = np.zeros((0, 3), np.float32)
    tree = {"a": leaves[0], "b": [None, leaves[1], empty], "c": (optax.MaskedNode(), leaves[2])}
    masks = together(tree, np.int32(k))
    assert jax.tree.structure(masks) == jax.tree.structure(tree)
    got = [leaf for leaf in jax.tree.leaves(masks) if leaf.size]
    for mask, want in zip(got, reference.global_top_k(leaves, k), strict=True):
        np.testing.assert_array_equal(mask, want)


@given(scores=finite, k=counts)
def test_a_mask_as_scores_selects_itself(scores: np.ndarray, k: int):
    mask = traced(scores, np.int32(k))
    np.testing.assert_array_equal(traced(mask, np.int32(k)), mask)


@given(scores=finite, k=counts, more=counts)
def test_masks_nest_as_k_grows(scores: np.ndarray, k: int, more: int):
    few, many = (traced(scores, np.int32(n)) for n in sorted([k, more]))
    assert not bool((few & ~many).any())


@given(scores=finite, k=counts, seed=st.integers(0, 2**32 - 1))
def test_a_permutation_moves_the_mask_but_for_ties(scores: np.ndarray, k: int, seed: int):
    order = np.random.default_rng(seed).permutation(SIZE)
    moved = scores.reshape(-1)[order].reshape(SHAPE)
    kept = scores[np.asarray(traced(scores, np.int32(k)))]
    kept_moved = moved[np.asarray(traced(moved, np.int32(k)))]
    np.testing.assert_array_equal(np.sort(kept), np.sort(kept_moved))


@given(scores=finite, k=counts)
def test_an_order_preserving_map_keeps_the_mask(scores: np.ndarray, k: int):
    ranks = np.unique(scores, return_inverse=True)[1].reshape(SHAPE).astype(np.int32)
    np.testing.assert_array_equal(traced(ranks, np.int32(k)), traced(scores, np.int32(k)))


@given(scores=draws.scores((3, *SHAPE), "float32"), ks=st.lists(counts, min_size=3, max_size=3))
def test_mapped_over_seeds_each_has_its_own_mask(scores: np.ndarray, ks: list[int]):
    masks = mapped(scores, np.array(ks, np.int32))
    for mask, one, k in zip(masks, scores, ks, strict=True):
        np.testing.assert_array_equal(mask, reference.top_k(one, k))


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=str)
@settings(max_examples=10)
@given(scores=draws.scores((8, 16), "float32"), k=st.integers(0, 128))
def test_split_over_devices_the_mask_is_the_same(kind: AxisType, scores: np.ndarray, k: int):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        split = jax.device_put(scores, NamedSharding(mesh, PartitionSpec("model", "data")))
        mask = traced(split, np.int32(k))
    assert mask.sharding == split.sharding
    np.testing.assert_array_equal(mask, reference.top_k(scores, k))
