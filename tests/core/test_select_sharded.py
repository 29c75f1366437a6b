"""Selection over eight devices: the same mask, where its scores are, through scalars alone."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import hlo
from jaxprune._core.select import global_top_k_mask, top_k_mask
from tests import quick
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


@pytest.fixture
def explicit() -> Mesh:
    """The mesh of jax's default kind, for what does not depend on the kind."""
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)


def put(array: Any, mesh: Mesh, spec: P) -> jax.Array:
    return jax.device_put(array, NamedSharding(mesh, spec))


def run(mesh: Mesh, function: Callable[..., Any], *args: Any) -> tuple[Any, list[hlo.Operation]]:
    """Compile and call a function on a mesh; return the result and its collectives."""
    with jax.set_mesh(mesh):
        program = quick.jit(function).lower(*args).compile()
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
    mask, found = run(mesh, top_k_mask, x, jnp.int32(K))
    np.testing.assert_array_equal(mask, reference.top_k(scores, K))
    assert mask.sharding == x.sharding
    assert_scalar_sums(found)


def test_outside_jit_it_is_the_same(explicit: Mesh, scores: np.ndarray):
    x = put(scores, explicit, SPECS["both"])
    with jax.set_mesh(explicit):
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


def test_counts_for_each_position_may_be_sharded_too(explicit: Mesh, scores: np.ndarray):
    k = np.arange(8, dtype=np.int32)[None]
    args = (put(scores, explicit, P("data", "model")), put(k, explicit, P(None, "model")))
    mask, _ = run(explicit, lambda x, k: top_k_mask(x, k, axis=0), *args)
    np.testing.assert_array_equal(mask, reference.top_k_along(scores, k, [0]))


# Inside shard_map.

SPLIT = P("data", "model")
checks = pytest.mark.parametrize("check_vma", [True, False])


def mapped(mesh: Mesh, check_vma: bool, function: Any, spec: P = SPLIT) -> Callable[..., Any]:
    """Return a function of arrays that calls one on their shards; results are split alike."""
    call = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)
    program = quick.jit(call)

    def on_mesh(*arrays: np.ndarray) -> Any:
        with jax.set_mesh(mesh):
            return program(*(put(x, mesh, spec) for x in arrays))

    return on_mesh


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
def test_k_counts_all_shards_and_ties_go_to_the_lower_shard(
    mesh: Mesh, scores: np.ndarray, rng: np.random.Generator, check_vma: bool
):
    names = None if check_vma else ("data", "model")
    select = mapped(mesh, check_vma, lambda x: top_k_mask(x, K, axis_names=names))
    mask = select(scores)
    assert int(mask.sum()) == K
    np.testing.assert_array_equal(mask, lower_shards_first(mesh, scores, K))
    distinct = rng.permutation(128).reshape(SHAPE).astype(np.float32)
    np.testing.assert_array_equal(select(distinct), reference.top_k(distinct, K))


def test_a_tree_is_ranked_together_inside_shard_map(explicit: Mesh, rng: np.random.Generator):
    leaves = rng.permutation(256).reshape(2, *SHAPE).astype(np.float32)
    masks = mapped(explicit, True, lambda *leaves: global_top_k_mask(leaves, 100))(*leaves)
    for mask, want in zip(masks, reference.global_top_k(leaves, 100), strict=True):
        np.testing.assert_array_equal(mask, want)


@checks
def test_along_an_axis_the_caller_names_what_splits_it(
    explicit: Mesh, scores: np.ndarray, check_vma: bool
):
    select = functools.partial(top_k_mask, k=3, axis=0, axis_names="data")
    mask = mapped(explicit, check_vma, select)(scores)
    np.testing.assert_array_equal(mask, reference.top_k_along(scores, 3, [0]))


@checks
def test_without_mesh_axes_every_shard_selects_by_itself(
    explicit: Mesh, scores: np.ndarray, check_vma: bool
):
    select = functools.partial(top_k_mask, k=5, axis_names=())
    shards = np.asarray(mapped(explicit, check_vma, select)(scores)).reshape(4, 4, 2, 4)
    np.testing.assert_array_equal(shards.sum((1, 3)), np.full((4, 2), 5))


def test_an_axis_that_is_not_manual_stays_automatic(scores: np.ndarray):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
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


def test_more_scores_than_a_count_holds_are_refused_over_all_shards(explicit: Mesh):
    x = jax.ShapeDtypeStruct((2**17, 2**14), jnp.float32, sharding=NamedSharding(explicit, SPLIT))
    call = jax.shard_map(lambda x: top_k_mask(x, 3), mesh=explicit, in_specs=SPLIT, out_specs=SPLIT)
    with jax.set_mesh(explicit), pytest.raises(ValueError) as raised:
        jax.eval_shape(call, x)
    assert str(raised.value) == (
        "the array of scores has 2147483648 entries that compete (shape (32768, 8192) on each of "
        "8 shards); at most 2147483647 of one array can. Select along an axis (axis=) or split "
        "the array."
    )


def error_of(mesh: Mesh, check_vma: bool, function: Any, spec: P = SPLIT) -> str:
    with pytest.raises(ValueError) as raised:
        mapped(mesh, check_vma, function, spec)(np.zeros(SHAPE, np.float32))
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
