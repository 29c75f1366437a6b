"""The selection by digits, with its counting in plain jax; the kernel itself is only lowered here.

On a GPU the kernel is compared with numpy by `experiments.benchmarks.selection`.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune._core import counts, select, select_gpu

SIZE = 1003  # three chunks and a tail, once a tile holds 128 float32 scores
BUILDS = "out_type" in inspect.signature(mosaic_gpu.kernel).parameters  # jax 0.11 and newer


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select_gpu, "_TILE_BYTES", 512)
    monkeypatch.setattr(select_gpu, "_BLOCKS", 3)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the process believe that it has one Hopper GPU."""
    builds = select_gpu._builds
    monkeypatch.setattr(select_gpu, "_on_hopper", lambda: True)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    jax.clear_caches()  # the choice is made when a selection is traced
    builds.cache_clear()
    yield
    jax.clear_caches()
    builds.cache_clear()


def expected(scores: np.ndarray, k: int) -> np.ndarray:
    """Sort stably from the largest down: NaN last, -0.0 as 0.0, ties in index order."""
    values = scores.astype(np.float64)
    order = np.lexsort((np.arange(scores.size), -values, np.isnan(values)))
    mask = np.zeros(scores.size, bool)
    mask[order[:k]] = True
    return mask


INPUTS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal": lambda rng: rng.standard_normal(SIZE),
    "all equal": lambda rng: np.full(SIZE, -0.5),
    "seven values": lambda rng: rng.integers(0, 7, SIZE) / 8,
    "both zeros": lambda rng: rng.choice([0.0, -0.0, 1.0, -1.0], SIZE),
    "NaN and inf": lambda rng: rng.choice([np.nan, np.inf, -np.inf, 1.0], SIZE),
    "denormal": lambda rng: rng.integers(-9, 9, SIZE) * 1e-42,
    "tied in the tail": lambda rng: np.repeat([1.0, 0.0], [SIZE - 40, 40]),
}


@functools.cache
def _select_by_digits() -> Callable[[jax.Array, jax.Array], jax.Array]:
    def run(scores: jax.Array, k: jax.Array) -> jax.Array:
        return select_gpu.masks((scores,), counts.as_count(k), mesh_axes=((),))[0]

    return jax.jit(run)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", INPUTS)
def test_digits_select_as_a_stable_sort_does(
    name: str, dtype: Any, rng: np.random.Generator, small_tiles: None
) -> None:
    scores = jnp.asarray(INPUTS[name](rng), jnp.float32).astype(dtype)
    for k in (0, 1, 17, SIZE // 2, SIZE - 1, SIZE):
        got = _select_by_digits()(scores, jnp.int32(k))
        np.testing.assert_array_equal(got, expected(np.asarray(scores), k), err_msg=f"k = {k}")


def test_arrays_compete_together_and_ties_go_to_the_earlier_one(
    rng: np.random.Generator, small_tiles: None
) -> None:
    shapes = ((3, 5), (20, 30), (128,))
    scores = tuple(jnp.asarray(rng.integers(0, 5, shape), jnp.float32) for shape in shapes)
    whole = np.concatenate([np.ravel(x) for x in scores])
    run = jax.jit(lambda x, k: select_gpu.masks(x, counts.as_count(k), mesh_axes=((),) * 3))
    for k in (0, 8, 300, whole.size - 2):
        masks = run(scores, jnp.int32(k))
        assert [m.shape for m in masks] == list(shapes)
        got = np.concatenate([np.ravel(m) for m in masks])
        np.testing.assert_array_equal(got, expected(whole, k), err_msg=f"k = {k}")


@pytest.mark.parametrize("names", [("data", "model"), ("model",)])
def test_shards_select_together_and_ties_go_to_the_lower_one(
    names: tuple[str, ...], mesh: Mesh, rng: np.random.Generator, small_tiles: None
) -> None:
    scores = rng.integers(0, 5, (16, 24)).astype(np.float32)

    def select_here(part: jax.Array, k: jax.Array) -> jax.Array:
        return select_gpu.masks((part,), counts.as_count(k), mesh_axes=(names,))[0]

    run = jax.jit(
        jax.shard_map(select_here, mesh=mesh, in_specs=(P(names), P()), out_specs=P(names))
    )
    placed = jax.device_put(scores, NamedSharding(mesh, P(names)))
    for k in (0, 100, 383):
        mask = run(placed, jnp.int32(k))
        np.testing.assert_array_equal(np.ravel(mask), expected(scores.ravel(), k))


def _kernels(function: Callable[..., Any], scores: jax.Array, platform: str) -> int:
    lowered = jax.jit(function).trace(scores).lower(lowering_platforms=(platform,))
    return lowered.as_text().count("@mosaic_gpu")


@pytest.mark.parametrize("platform", ["cuda", "cpu"])
def test_the_kernel_serves_large_scores_compiled_for_cuda(platform: str, hopper: None) -> None:
    scores = jnp.zeros((2, 1 << 16), jnp.bfloat16)
    compiled = 1 if BUILDS and platform == "cuda" else 0  # called once for each digit
    warned = pytest.warns(RuntimeWarning, match="the search without a kernel is used")
    with contextlib.nullcontext() if BUILDS else warned:
        assert _kernels(lambda x: select.top_k_mask(x[0], 9), scores, platform) == compiled
    assert _kernels(lambda x: select.top_k_mask(x[0, 1:], 9), scores, platform) == 0
    assert _kernels(lambda x: select.top_k_mask(x, 9, axis=1), scores, platform) == 0
    assert _kernels(lambda x: select.top_k_mask(x[0].astype(jnp.float16), 9), scores, platform) == 0
    assert _kernels(jax.vmap(lambda x: select.top_k_mask(x, 9)), scores, platform) == 0


def test_the_search_gives_the_mask_where_the_kernel_is_not_compiled(
    hopper: None, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(select_gpu, "_builds", lambda: True)
    monkeypatch.setattr(select_gpu, "count_digits_gpu", select_gpu.count_digits)
    scores = jnp.asarray(rng.integers(0, 9, (2, 1 << 16)), jnp.float32)
    masks = jax.jit(jax.vmap(select.top_k_mask, in_axes=(0, None)))(scores, jnp.int32(1000))
    for row, mask in zip(scores, masks, strict=True):
        np.testing.assert_array_equal(mask, expected(np.asarray(row), 1000))
        np.testing.assert_array_equal(select.top_k_mask(row, 1000), mask)


def test_an_array_that_may_be_split_over_devices_is_searched(mesh: Mesh) -> None:
    seen = []

    def look(x: jax.Array) -> jax.Array:
        seen.append(select_gpu._is_whole())
        return x

    look(jnp.zeros(1))
    jax.jit(jax.shard_map(look, mesh=mesh, in_specs=P(), out_specs=P())).trace(jnp.zeros(1))
    half = jax.shard_map(look, mesh=mesh, in_specs=P(), out_specs=P(), axis_names={"data"})
    jax.jit(half).trace(jnp.zeros(1))
    assert seen == [False, True, False]
