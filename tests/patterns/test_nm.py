"""N:M against a slow reference, on every axis; the shapes and arguments that it refuses."""

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxprune import NM
from jaxprune.patterns import nm
from tests.laws.measure import collectives
from tests.patterns import references


@pytest.mark.parametrize(
    ("pattern", "shape", "axes"),
    [
        (NM(1, 4), (8, 3), (0,)),
        (NM(1, 4), (3, 2, 8, 5), (2,)),
        (NM(1, 4, axis=-1), (3, 8), (1,)),
        (NM(1, 4, axis=1), (3, 8, 2), (1,)),
        (NM(1, 4, axis=(0, 1)), (3, 8, 2), (0, 1)),  # whole groups in the last axis
        (NM(1, 4, axis=(0, 1)), (6, 2, 5), (0, 1)),  # groups span both
        (NM(1, 4, axis=(1, 0)), (6, 2, 5), (1, 0)),
        (NM(1, 4, axis=(-1, 0)), (2, 5, 6), (2, 0)),
        (NM(1, 4, axis=(0, 2, 1)), (2, 3, 2), (0, 2, 1)),
        (NM(1, 4, pad=True), (10, 3), (0,)),
        (NM(1, 4, axis=(0, 1), pad=True), (3, 3, 2), (0, 1)),
    ],
    ids=str,
)
def test_every_group_keeps_its_best(
    pattern: NM, shape: tuple[int, ...], axes: tuple[int, ...], rng: np.random.Generator
):
    select = jax.jit(pattern.mask)
    for different, kept in itertools.product((3, 10**6), (1, 2, 3, 4)):  # with ties and without
        scores = rng.integers(0, different, shape).astype(np.float32)
        got = select(jnp.asarray(scores), jnp.int32(kept))
        np.testing.assert_array_equal(got, references.nm(scores, kept, 4, axes))
        assert bool(pattern.holds(got)) == (kept == 1)


@pytest.mark.parametrize("m", [1, 2, 5, 8])
def test_pairs_find_what_ranks_do(m: int, rng: np.random.Generator):
    """The form for TPUs, which does not run here."""
    image = jnp.asarray(rng.integers(0, 4, (3, m, 40)), jnp.uint32)
    for kept in range(m + 1):
        each = [f(image, jnp.int32(kept), 1) for f in (nm._best, nm._best_of_pairs)]
        np.testing.assert_array_equal(*each)


def test_a_tpu_compares_pairs_of_small_groups():
    shape = jax.ShapeDtypeStruct((64, 8), jnp.float32)

    def largest(m: int, platform: str) -> int:
        """Count the comparisons of a whole weight."""
        lowered = jax.jit(lambda x: NM(1, m).mask(x, 1)).trace(shape)
        text = lowered.lower(lowering_platforms=(platform,)).as_text()
        groups = f"tensor<{64 // m}x{m}x8xui32>"
        return len(re.findall(f"stablehlo.compare .*{groups}, {groups}", text))

    assert largest(4, "cpu") == largest(4, "cuda") > 0
    assert largest(4, "tpu") == 0
    assert largest(16, "tpu") == largest(16, "cpu")


@pytest.mark.parametrize("m", [1, 2, 16, 64, 65, 96])
def test_groups_of_any_size(m: int, rng: np.random.Generator):
    scores = rng.integers(0, 9, (2 * m, 3)).astype(np.float32)
    kept = (m + 1) // 2
    got = NM(kept, m).mask(jnp.asarray(scores), kept)
    np.testing.assert_array_equal(got, references.nm(scores, kept, m, (0,)))


def test_zeros_of_both_signs_are_equal_and_the_lower_index_wins():
    scores = jnp.array([[-0.0], [0.0], [-0.0], [0.0]])
    np.testing.assert_array_equal(NM(2, 4).mask(scores, 2), [[True], [True], [False], [False]])


def test_nan_is_the_lowest_inside_jit_and_named_outside():
    scores = jnp.array([[jnp.nan], [-jnp.inf], [jnp.nan], [1.0]])
    got = jax.jit(NM(2, 4).mask)(scores, 2)
    np.testing.assert_array_equal(got, [[False], [True], [False], [True]])
    with pytest.raises(ValueError, match="2 NaN entries"):
        NM(2, 4).mask(scores, 2)


def test_nan_beats_padding():
    scores = jnp.full((6, 1), jnp.nan)
    got = jax.jit(NM(2, 4, pad=True).mask)(scores, 2)
    np.testing.assert_array_equal(got[:, 0], [True, True, False, False, True, True])


@pytest.mark.parametrize(
    ("density", "kept"), [(1.0, 4), (0.76, 4), (0.75, 3), (0.74, 3), (0.5, 2), (0.1, 2), (0.0, 2)]
)
def test_groups_thin_out_with_the_density_down_to_n(density: float, kept: int):
    assert NM(2, 4).units((8, 8), density) == kept
    traced = jax.jit(lambda d: NM(2, 4).units((8, 8), d))(jnp.float32(density))
    assert int(traced) == kept


def test_rounding_errors_keep_no_extra_weight():
    assert NM(1, 10).units((10, 1), 1.0 - 0.9) == 1  # 0.09999999999999998
    assert NM(1, 10).units((10, 1), 1.0 - 0.7) == 3  # 0.30000000000000004
    traced = jax.jit(lambda sparsity: NM(1, 10).units((10, 1), 1.0 - sparsity))
    assert int(traced(jnp.float32(0.9))) == 1
    assert int(traced(jnp.float32(0.7))) == 3


def test_the_final_sparsity_counts_what_is_pruned():
    assert NM(1, 4).final_sparsity == 0.75
    assert NM(4, 4).final_sparsity == 0.0


def test_fewer_than_n_hold_and_more_do_not():
    pattern = NM(2, 4)
    assert bool(pattern.holds(jnp.zeros((8, 2), bool)))
    assert bool(pattern.holds(jnp.array([[True], [False], [False], [True]])))
    assert not bool(pattern.holds(jnp.array([[True], [True], [False], [True]])))


@pytest.mark.parametrize(
    ("pattern", "shape", "spec"),
    [
        (NM(2, 4, axis=(0, 1)), (8, 16, 6), ("data", "model")),
        (NM(2, 4, axis=(0, 1)), (16, 2, 6), ("data", None, "model")),
        (NM(2, 4, pad=True), (10, 8), (None, "data")),
        (NM(2, 16, axis=1), (4, 64, 2), ("data", "model")),
    ],
    ids=str,
)
def test_shards_of_whole_groups_need_nothing_from_one_another(
    pattern: NM,
    shape: tuple[int, ...],
    spec: tuple[Any, ...],
    key: jax.Array,
    mesh: Mesh,
):
    scores = jax.random.normal(key, shape)
    want = pattern.mask(scores, pattern.n)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    with jax.set_mesh(mesh):
        placed = jax.device_put(scores, sharding)
        compiled = jax.jit(pattern.mask).lower(placed, jnp.int32(pattern.n)).compile()
        got = compiled(placed, jnp.int32(pattern.n))
    np.testing.assert_array_equal(got, want)
    assert got.sharding.is_equivalent_to(sharding, len(shape))
    assert not collectives(compiled)


@pytest.mark.parametrize("m", [4, 80])  # by rank, and by a search
def test_groups_inside_shard_map_are_those_of_a_shard(m: int, key: jax.Array, mesh: Mesh):
    scores = jax.random.normal(key, (2 * m, 8))
    spec = PartitionSpec("model", "data")
    placed = jax.device_put(scores, NamedSharding(mesh, spec))

    def mask(shard: jax.Array) -> jax.Array:
        return NM(1, m).mask(shard, jnp.int32(1))

    got = jax.jit(jax.shard_map(mask, mesh=mesh, in_specs=spec, out_specs=spec))(placed)
    np.testing.assert_array_equal(got, NM(1, m).mask(scores, 1))


@pytest.mark.parametrize(
    ("pattern", "shape", "spec"),
    [
        (NM(2, 4), (24, 8), ("data", "model")),  # shards of 6 rows
        (NM(2, 4, axis=(0, 1)), (3, 4, 8), (None, "data", "model")),
        (NM(2, 4, axis=(0, 1)), (4, 2, 8), ("data", "model")),
        (NM(2, 4, pad=True), (4, 8), (("data",), "model")),
    ],
    ids=str,
)
def test_shards_that_cut_groups_give_the_same_mask(
    pattern: NM,
    shape: tuple[int, ...],
    spec: tuple[Any, ...],
    key: jax.Array,
    mesh: Mesh,
):
    scores = jax.random.normal(key, shape)
    want = pattern.mask(scores, 2)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    with jax.set_mesh(mesh):
        got = jax.jit(pattern.mask)(jax.device_put(scores, sharding), jnp.int32(2))
        assert bool(jax.jit(pattern.holds)(got))
    np.testing.assert_array_equal(got, want)
    assert got.sharding.is_equivalent_to(sharding, len(shape))


@pytest.mark.parametrize(
    ("pattern", "shape", "text"),
    [
        (
            NM(2, 4),
            (6, 8),
            "NM(n=2, m=4) does not fit 'dense/kernel' of shape (6, 8): axis 0 has length 6, not a "
            "multiple of 4. Pass pad=True, another axis, or exclude this parameter with where=.",
        ),
        (
            NM(2, 4, axis=(0, 1)),
            (3, 2, 8),
            "NM(n=2, m=4, axis=(0, 1)) does not fit 'dense/kernel' of shape (3, 2, 8): axes (0, 1) "
            "together have length 6, not a multiple of 4. Pass pad=True, another axis, or exclude "
            "this parameter with where=.",
        ),
        (
            NM(2, 4),
            (8, 4, 16),
            "NM(n=2, m=4) does not fit 'dense/kernel' of shape (8, 4, 16): the default axis -2 is "
            "the contracted one of [in, out] and HWIO kernels only, not at rank 3. Give the "
            "contracted axis as a non-negative number or a tuple, say with layers= which axis "
            "stacks layers, or exclude this parameter with where=.",
        ),
        (
            NM(1, 2, axis=3, pad=True),
            (8, 4),
            "NM(n=1, m=2, axis=3, pad=True) does not fit 'dense/kernel' of shape (8, 4): axis 3 "
            "does not name different axes of rank 2. Give another axis, or exclude this parameter "
            "with where=.",
        ),
        (
            NM(2, 4, axis=(0, -2)),
            (8, 4),
            "NM(n=2, m=4, axis=(0, -2)) does not fit 'dense/kernel' of shape (8, 4): axis (0, -2) "
            "does not name different axes of rank 2. Give another axis, or exclude this parameter "
            "with where=.",
        ),
    ],
    ids=["length", "lengths", "rank", "axis", "same axis"],
)
def test_a_parameter_that_does_not_fit_is_named(pattern: NM, shape: tuple[int, ...], text: str):
    with pytest.raises(ValueError) as error:
        pattern.check("dense/kernel", shape)
    assert str(error.value) == text


@pytest.mark.parametrize("shape", [(8,), (8, 8, 8), (1, 1, 1, 4, 8)])
def test_the_default_axis_is_for_rank_2_and_4(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="the default axis -2 is the contracted one"):
        NM(2, 4).check("w", shape)
    NM(2, 4, axis=-1).check("w", shape)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"n": 5, "m": 4},
            "NM: n must be in [1, m=4], got 5. It is the number of weights kept in every group of "
            "4; 2:4 is NM(2, 4).",
        ),
        (
            {"n": 0, "m": 4},
            "NM: n must be in [1, m=4], got 0. It is the number of weights kept in every group of "
            "4; 2:4 is NM(2, 4).",
        ),
        (
            {"n": -1, "m": 4},
            "NM: n must be in [1, m=4], got -1. It is the number of weights kept in every group of "
            "4; 2:4 is NM(2, 4).",
        ),
        (
            {"n": 0, "m": 0},
            "NM: m must be 1 or more, got 0. It is the size of a group.",
        ),
        (
            {"n": 2, "m": 4, "axis": ()},
            "NM: axis must be an axis or a tuple of different axes, got (). Groups run along the "
            "contracted axes, flattened in the given order.",
        ),
        (
            {"n": 2, "m": 4, "axis": (1, 1)},
            "NM: axis must be an axis or a tuple of different axes, got (1, 1). Groups run along "
            "the contracted axes, flattened in the given order.",
        ),
    ],
    ids=str,
)
def test_bad_numbers_are_refused(arguments: dict[str, Any], text: str):
    with pytest.raises(ValueError) as error:
        NM(**arguments)
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"n": 2.0, "m": 4},
            "NM: n must be an integer, got 2.0 of type float. It is the number of weights kept in "
            "a group.",
        ),
        (
            {"n": 2, "m": "4"},
            "NM: m must be an integer, got '4' of type str. It is the number of weights in a "
            "group.",
        ),
        (
            {"n": 2, "m": 4, "axis": None},
            "NM: axis must be an integer, got None of type NoneType. It is an axis, a tuple of "
            "axes, or a graph.",
        ),
    ],
    ids=str,
)
def test_what_is_no_integer_is_refused(arguments: dict[str, Any], text: str):
    with pytest.raises(TypeError) as error:
        NM(**arguments)
    assert str(error.value) == text


def test_numbers_are_normalised():
    given: list[Any] = [np.int64(2), np.int64(4), [0]]
    assert NM(*given) == NM(2, 4, axis=0)
    assert repr(NM(2, 4)) == "NM(n=2, m=4)"
    assert repr(NM(2, 4, (0, 1), pad=True)) == "NM(n=2, m=4, axis=(0, 1), pad=True)"
