"""Selection over eight devices: the same mask, where its scores are, through scalars alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune._core import meshes
from jaxprune._core.select import global_top_k_mask, top_k_mask
from tests import hlo
from tests.core import reference

SHAPE = (16, 8)
K = 37
SPECS = {"both": P("data", "model"), "one": P(None, "model"), "joined": P(("model", "data"), None)}
SCALARS = 128  # bytes: a pass sums seven counts of four bytes
MOVES = {"sort", "custom-call:TopK"}  # a collective is not the only way to look at all scores


@pytest.fixture
def scores(rng: np.random.Generator) -> np.ndarray:
    """Scores of which many are tied."""
    return rng.integers(-9, 10, SHAPE).astype(np.float32)


def put(array: Any, mesh: Mesh, spec: P) -> jax.Array:
    return jax.device_put(array, NamedSharding(mesh, spec))


def run(mesh: Mesh, function: Callable[..., Any], *args: Any) -> tuple[Any, list[hlo.Operation]]:
    """Compile and call a function on a mesh; return the result and its collectives."""
    with jax.set_mesh(mesh):
        program = jax.jit(function).lower(*args).compile()
        result = program(*args)
    assert not hlo.kinds(program) & MOVES
    return result, hlo.collectives(program)


def assert_scalar_sums(found: list[hlo.Operation], most: int = SCALARS) -> None:
    assert found
    assert {operation.kind for operation in found} == {"all-reduce"}
    assert max(operation.bytes for operation in found) <= most


# Sharded arrays.


@pytest.mark.parametrize("spec", SPECS)
def test_the_mask_is_the_unsharded_one_and_only_scalars_travel(
    mesh: Mesh, scores: np.ndarray, spec: str
):
    x = put(scores, mesh, SPECS[spec])
    mask, found = run(mesh, lambda x, k: top_k_mask(x, k), x, jnp.int32(K))
    np.testing.assert_array_equal(mask, reference.top_k(scores, K))
    assert mask.sharding == x.sharding
    assert_scalar_sums(found)


def test_outside_jit_it_is_the_same(mesh: Mesh, scores: np.ndarray):
    x = put(scores, mesh, SPECS["both"])
    with jax.set_mesh(mesh):
        mask = top_k_mask(x, K)
    np.testing.assert_array_equal(mask, reference.top_k(scores, K))
    assert mask.sharding == x.sharding


def test_a_tree_is_ranked_together_wherever_its_leaves_are(mesh: Mesh, scores: np.ndarray):
    leaves = [scores, scores[:, 0].astype(jnp.bfloat16), scores[:4]]
    specs = [P("data", "model"), P("model"), P(None, "data")]
    split = [put(*args) for args in zip(leaves, [mesh] * 3, specs, strict=True)]
    masks, found = run(mesh, lambda tree: global_top_k_mask(tree, 60), split)
    for mask, want, leaf in zip(masks, reference.global_top_k(leaves, 60), split, strict=True):
        np.testing.assert_array_equal(mask, want)
        assert mask.sharding == leaf.sharding
    assert_scalar_sums(found)


@pytest.mark.parametrize(
    ("axis", "most"), [(0, SCALARS), (1, 7 * 4 * SHAPE[0])], ids=["whole", "split"]
)
def test_along_an_axis_what_travels_is_a_count_for_each_position(
    mesh: Mesh, scores: np.ndarray, axis: int, most: int
):
    x = put(scores, mesh, P(None, ("data", "model")))
    mask, found = run(mesh, lambda x: top_k_mask(x, 3, axis=axis), x)
    np.testing.assert_array_equal(mask, reference.top_k_along(scores, 3, [axis]))
    assert mask.sharding == x.sharding
    assert_scalar_sums(found, most)


def test_counts_for_each_position_may_be_sharded_too(mesh: Mesh, scores: np.ndarray):
    k = np.arange(8, dtype=np.int32)[None]
    args = (put(scores, mesh, P("data", "model")), put(k, mesh, P(None, "model")))
    mask, _ = run(mesh, lambda x, k: top_k_mask(x, k, axis=0), *args)
    np.testing.assert_array_equal(mask, reference.top_k_along(scores, k, [0]))


# Inside shard_map.

SPLIT = P("data", "model")
checks = pytest.mark.parametrize("check_vma", [True, False])


def mapped(mesh: Mesh, check_vma: bool, function: Any, *scores: Any, spec: P = SPLIT) -> Any:
    """Call a function on the shards of arrays; its results are split alike."""
    call = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)
    with jax.set_mesh(mesh):
        return jax.jit(call)(*(put(x, mesh, spec) for x in scores))


def shard_by_shard(mesh: Mesh, x: np.ndarray) -> np.ndarray:
    """Return, for each entry of an array split over both axes, its place if shards follow."""
    rows, columns = (n // size for n, size in zip(x.shape, mesh.devices.shape, strict=True))
    row, column = np.indices(x.shape)
    shard = (row // rows) * mesh.devices.shape[1] + column // columns
    return (shard * rows + row % rows) * columns + column % columns


def lower_shards_first(mesh: Mesh, x: np.ndarray, k: int) -> np.ndarray:
    """The reference's mask under the tie rule of shard_map."""
    place = shard_by_shard(mesh, x)
    ordered = np.empty(x.size, x.dtype)
    ordered[place.reshape(-1)] = x.reshape(-1)
    return reference.top_k(ordered, k)[place]


@checks
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "distinct"])
def test_k_counts_all_shards_and_ties_go_to_the_lower_shard(
    mesh: Mesh, scores: np.ndarray, rng: np.random.Generator, check_vma: bool, tied: bool
):
    x = scores if tied else rng.permutation(128).reshape(SHAPE).astype(np.float32)
    names = None if check_vma else ("data", "model")
    mask = mapped(mesh, check_vma, lambda x: top_k_mask(x, K, axis_names=names), x)
    assert int(mask.sum()) == K
    np.testing.assert_array_equal(mask, lower_shards_first(mesh, x, K))
    if not tied:
        np.testing.assert_array_equal(mask, reference.top_k(x, K))


@checks
def test_a_tree_is_ranked_together_inside_shard_map(
    mesh: Mesh, rng: np.random.Generator, check_vma: bool
):
    a, b = rng.permutation(256).reshape(2, *SHAPE).astype(np.float32)
    names = None if check_vma else ("data", "model")
    masks = mapped(
        mesh, check_vma, lambda *leaves: global_top_k_mask(leaves, 100, axis_names=names), a, b
    )
    for mask, want in zip(masks, reference.global_top_k([a, b], 100), strict=True):
        np.testing.assert_array_equal(mask, want)


@checks
@pytest.mark.parametrize("names", [("data",), "data"], ids=repr)
def test_along_an_axis_the_caller_names_what_splits_it(
    mesh: Mesh, scores: np.ndarray, check_vma: bool, names: Any
):
    select = lambda x: top_k_mask(x, 3, axis=0, axis_names=names)
    mask = mapped(mesh, check_vma, select, scores)
    np.testing.assert_array_equal(mask, reference.top_k_along(scores, 3, [0]))


@checks
def test_without_mesh_axes_every_shard_selects_by_itself(
    mesh: Mesh, scores: np.ndarray, check_vma: bool
):
    mask = mapped(mesh, check_vma, lambda x: top_k_mask(x, 5, axis_names=()), scores)
    shards = np.asarray(mask).reshape(4, 4, 2, 4)
    np.testing.assert_array_equal(shards.sum((1, 3)), np.full((4, 2), 5))


def test_an_axis_that_is_not_manual_stays_automatic(scores: np.ndarray):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    call = jax.shard_map(
        lambda x: top_k_mask(x, K),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
        axis_names={"data"},
    )
    x = put(scores, mesh, P("data", "model"))
    mask, found = run(mesh, call, x)
    np.testing.assert_array_equal(mask, reference.top_k(scores, K))
    assert_scalar_sums(found)


def test_more_scores_than_a_count_holds_are_refused_over_all_shards(mesh: Mesh):
    x = jax.ShapeDtypeStruct((2**17, 2**14), jnp.float32, sharding=NamedSharding(mesh, SPLIT))
    call = jax.shard_map(lambda x: top_k_mask(x, 3), mesh=mesh, in_specs=SPLIT, out_specs=SPLIT)
    with jax.set_mesh(mesh), pytest.raises(ValueError) as raised:
        jax.eval_shape(call, x)
    assert str(raised.value) == (
        "the array of scores has 2147483648 entries that compete (shape (32768, 8192) on each of "
        "8 shards); at most 2147483647 of one array can. Select along an axis (axis=) or split "
        "the array."
    )


def error_of(mesh: Mesh, check_vma: bool, function: Any, spec: P = SPLIT) -> str:
    with pytest.raises(ValueError) as raised:
        mapped(mesh, check_vma, function, np.zeros(SHAPE, np.float32), spec=spec)
    return str(raised.value)


@pytest.mark.parametrize(
    ("check_vma", "spec", "shape"),
    [(False, SPLIT, (4, 4)), (True, P(), (16, 8))],
    ids=["unchecked", "replicated"],
)
def test_mesh_axes_that_cannot_be_read_are_asked_for(
    mesh: Mesh, check_vma: bool, spec: P, shape: tuple[int, ...]
):
    assert error_of(mesh, check_vma, lambda x: top_k_mask(x, 3), spec) == (
        "cannot read over which of the mesh axes ('data', 'model') an array of shape "
        f"{shape} is split (shard_map with check_vma=False, or a replicated array). "
        "Pass axis_names= with those axes, or axis_names=() if every shard holds the whole."
    )


@checks
def test_mesh_axes_along_an_axis_are_asked_for(mesh: Mesh, check_vma: bool):
    assert error_of(mesh, check_vma, lambda x: top_k_mask(x, 3, axis=0)) == (
        "cannot read which of the mesh axes ('data', 'model') split the axes (0,) along which "
        "scores of shape (4, 4) compete. Pass axis_names= with those mesh axes, or axis_names=() "
        "if no shard lacks a competitor."
    )


def test_an_unknown_mesh_axis_is_named(mesh: Mesh):
    assert error_of(mesh, True, lambda x: top_k_mask(x, 3, axis_names=("data", "rows"))) == (
        "axis_names=('data', 'rows') has 'rows', which is no axis of a shard_map around this "
        "call; its axes are ('data', 'model'). Outside shard_map leave axis_names out: a sharded "
        "array is selected from as a whole."
    )


def test_mesh_axes_outside_shard_map_are_refused(scores: np.ndarray):
    with pytest.raises(ValueError) as raised:
        top_k_mask(scores, 3, axis_names=("data",))
    assert str(raised.value) == (
        "axis_names=('data',) has 'data', which is no axis of a shard_map around this call; its "
        "axes are (). Outside shard_map leave axis_names out: a sharded array is selected from as "
        "a whole."
    )


# What is known of the shards.


@checks
def test_mesh_axes_may_be_set_for_a_block_of_selections(
    mesh: Mesh, scores: np.ndarray, check_vma: bool
):
    def select(x: jax.Array) -> jax.Array:
        with meshes.split_over(("data", "model")):
            assert meshes.shards_of(x) == 8
            mask = top_k_mask(x, K)
            sparse = top_k_mask(x, 1, axis_names=())
        return mask & (meshes.sum_over_shards(mask) >= 0) | (sparse & False)

    mask = mapped(mesh, check_vma, select, scores)
    np.testing.assert_array_equal(mask, lower_shards_first(mesh, scores, K))


def test_the_block_ends_after_an_error():
    with pytest.raises(RuntimeError, match="inside"), meshes.split_over(()):
        raise RuntimeError("inside")
    assert meshes.shards_of(jnp.ones(3)) == 1


def test_flags_are_counted_over_the_shards_that_an_array_varies_over(mesh: Mesh):
    def count(x: jax.Array) -> jax.Array:
        total = meshes.sum_over_shards(x > 0)
        return lax.pcast(total, ("data", "model"), to="varying") + jnp.zeros_like(x, jnp.int32)

    got = mapped(mesh, True, count, np.ones(SHAPE, np.float32))
    np.testing.assert_array_equal(got, np.full(SHAPE, 128))
