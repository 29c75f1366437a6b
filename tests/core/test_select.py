"""Selection on one device: exact by example, under every transform of jax, with clear errors."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

from jaxprune._core import select
from jaxprune._core.images import ordered_bits
from jaxprune._core.select import global_top_k_mask, refuse_nan, top_k_mask
from tests import quick
from tests.core import reference
from tests.laws.measure import compilations

NAN, INF = float("nan"), float("inf")
ROOT = Path(__file__).parents[2]

jitted = quick.jit(top_k_mask)


@pytest.fixture
def scores(rng: np.random.Generator) -> jax.Array:
    """Sixty scores with ties among them."""
    return jnp.asarray(rng.integers(-4, 5, (3, 4, 5)), jnp.float32)


def kept(mask: jax.Array) -> list[int]:
    """The flat indices of what is kept."""
    return np.flatnonzero(np.asarray(mask)).tolist()


# Examples.


def test_ties_go_to_the_lower_flat_index():
    assert kept(top_k_mask(jnp.ones((2, 3)), 4)) == [0, 1, 2, 3]
    assert kept(top_k_mask(jnp.array([[1.0, 2.0, 2.0], [2.0, 1.0, 3.0]]), 3)) == [1, 2, 5]


def test_nan_is_the_lowest_inside_jit_and_k_are_kept_all_the_same():
    x = jnp.array([NAN, -INF, -NAN, -3.0])
    selected = [kept(jitted(x, k)) for k in range(5)]
    assert selected == [[], [3], [1, 3], [0, 1, 3], [0, 1, 2, 3]]


def test_the_two_zeros_are_tied():
    assert kept(jitted(jnp.array([-0.0, 0.0, -0.0, -1.0]), 2)) == [0, 1]


def test_denormals_are_told_apart():
    tiny = np.array([1, 3, 2, 0], np.uint32).view(np.float32)
    assert kept(jitted(tiny, 2)) == [1, 2]


def test_a_scalar_is_an_array_of_one():
    assert [bool(top_k_mask(jnp.float32(7.0), k)) for k in (0, 1)] == [False, True]


def test_without_competing_axes_every_score_is_alone():
    assert kept(top_k_mask(jnp.ones(3), jnp.array([1, 0, 1]), axis=())) == [0, 2]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)], ids=str)
def test_of_nothing_nothing_is_kept(shape: tuple[int, ...]):
    mask = top_k_mask(jnp.zeros(shape), 0)
    assert mask.shape == shape
    assert mask.dtype == jnp.bool_


def test_a_tree_without_arrays_comes_back():
    tree = {"a": None, "b": optax.MaskedNode()}
    assert global_top_k_mask(tree, 0) == tree


def test_ties_go_to_the_earlier_leaf_in_tree_order():
    masks = global_top_k_mask({"b": np.ones(3, np.float32), "a": 1.0}, 2)
    assert bool(masks["a"])
    assert masks["b"].tolist() == [True, False, False]


@pytest.mark.parametrize(
    "dtype",
    [
        *(jnp.int4, jnp.uint4, jnp.int2, jnp.float4_e2m1fn),
        *(jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float8_e4m3b11fnuz),
    ],
    ids=lambda dtype: dtype.__name__,
)
def test_narrow_types_are_ordered(dtype: Any):
    values = jnp.asarray([1, 0, 1, 0] if dtype in (jnp.int2, jnp.uint4) else [1, -2, 1, 0], dtype)
    image = np.asarray(ordered_bits(values)).astype(np.int64)
    expected = np.asarray(values, np.float32)
    np.testing.assert_array_equal(
        np.sign(image[:, None] - image[None]), np.sign(expected[:, None] - expected[None])
    )


@pytest.mark.parametrize("axis", [1, -2, np.int64(1), (1,), [1]], ids=repr)
def test_an_axis_may_be_given_in_several_ways(scores: jax.Array, axis: Any):
    np.testing.assert_array_equal(
        top_k_mask(scores, 2, axis=axis), reference.top_k_along(scores, 2, [1])
    )


@pytest.mark.parametrize("k", [2, np.int8(2), jnp.uint32(2), np.array(2)], ids=repr)
def test_k_may_be_an_integer_of_any_type(scores: jax.Array, k: Any):
    np.testing.assert_array_equal(top_k_mask(scores, k), reference.top_k(scores, 2))


def clipped(k: jax.Array, most: int) -> int:
    """What a traced k selects, as an integer."""
    count = jax.jit(lambda k: select._checked_k(k, most, ()))(k)
    return int(count.high) * 65536 + int(count.low)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.uint32], ids=str)
@pytest.mark.parametrize("most", [0, 100, 300, 2**31 - 1, 2**33])
def test_a_traced_k_is_clipped_in_its_own_type(dtype: Any, most: int):
    for k in (jnp.iinfo(dtype).min, 1, jnp.iinfo(dtype).max):
        assert clipped(jnp.array(k, dtype), most) == min(max(k, 0), most)


def test_a_traced_k_of_64_bits_is_not_cut_to_32():
    with jax.enable_x64(True):
        for k in (-(2**40), 2**31, 2**33 - 1, 2**40):
            assert clipped(jnp.int64(k), 2**33) == min(max(k, 0), 2**33)


@pytest.mark.parametrize("k", [np.array([[[1], [0], [4], [2]]]), np.array([[[2]]])], ids=str)
def test_k_may_differ_between_positions(scores: jax.Array, k: np.ndarray):
    want = reference.top_k_along(scores, k, (0, 2))
    np.testing.assert_array_equal(top_k_mask(scores, k, axis=(0, 2)), want)
    np.testing.assert_array_equal(top_k_mask(scores, jnp.asarray(k), axis=(0, 2)), want)


# Transforms of jax.


def halved(x: jax.Array) -> jax.Array:
    """The sum of squares of the half that is kept."""
    return jnp.sum(jnp.where(top_k_mask(jnp.abs(x), x.size // 2), x, jnp.zeros_like(x)) ** 2)


def test_a_mask_has_no_derivative(scores: jax.Array):
    mask = top_k_mask(jnp.abs(scores), 30)
    want = jnp.where(mask, 2.0 * scores, 0.0)
    slope, second = quick.jit(lambda x: (jax.grad(halved)(x), jax.hessian(halved)(x)))(scores)
    np.testing.assert_array_equal(slope, want)
    second = second.reshape(60, 60)
    np.testing.assert_array_equal(second, jnp.diag(jnp.where(mask, 2.0, 0.0).reshape(-1)))


def test_it_runs_inside_scan_and_cond(scores: jax.Array):
    def body(total: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        mask = jax.lax.cond(total > 0, lambda: top_k_mask(x, 7), lambda: x > 0)
        return total + 1, mask

    _, masks = quick.jit(lambda x: jax.lax.scan(body, jnp.int32(0), x))(scores)
    want = [scores[0] > 0, *(reference.top_k(x, 7) for x in scores[1:])]
    np.testing.assert_array_equal(masks, np.stack(want))


def test_shapes_are_known_without_values():
    x = jax.ShapeDtypeStruct((4, 6), jnp.bfloat16)
    out = jax.eval_shape(lambda x: top_k_mask(x, 3, axis=0), x)
    assert (out.shape, out.dtype) == ((4, 6), jnp.bool_)


def test_a_tree_of_more_than_2_to_the_31_scores_is_accepted():
    leaf = jax.ShapeDtypeStruct((2**15, 2**15), jnp.float32)
    out = jax.eval_shape(lambda tree: global_top_k_mask(tree, 3 * 2**30), [leaf] * 4)
    assert [x.shape for x in out] == [leaf.shape] * 4


@pytest.mark.parametrize("function", [top_k_mask, jitted], ids=["eager", "jit"])
def test_another_k_and_other_scores_compile_nothing(
    function: Callable[..., jax.Array], scores: jax.Array
):
    ks, others = [jnp.int32(k) for k in (9, 21)], [scores, scores + 1.0]
    function(others[0], ks[0])
    with compilations() as found:
        mask = function(others[1], ks[1])
    assert not found
    assert int(mask.sum()) == 21


# Errors.


def broken(scores: Any, k: Any, **options: Any) -> Callable[[], Any]:
    return lambda: top_k_mask(scores, k, **options)


ONE = jnp.arange(12.0).reshape(3, 4)
LARGE = jax.ShapeDtypeStruct((2**16, 2**15), jnp.int8)
ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "k above": (
        broken(ONE, 13),
        ValueError,
        "k must be between 0 and the 12 scores that compete, got 13.",
    ),
    "k below": (
        broken(ONE, -1),
        ValueError,
        "k must be between 0 and the 12 scores that compete, got -1.",
    ),
    "k above along an axis": (
        broken(ONE, 4, axis=0),
        ValueError,
        "k must be between 0 and the 3 scores that compete, got 4.",
    ),
    "one k of several above": (
        broken(ONE, np.array([[1, 2, 3, 4]]), axis=0),
        ValueError,
        "k must be between 0 and the 3 scores that compete, got [[1 2 3 4]].",
    ),
    "k of nothing": (
        broken(jnp.zeros((0, 3)), 1),
        ValueError,
        "k must be between 0 and the 0 scores that compete, got 1.",
    ),
    "k of an empty tree": (
        lambda: global_top_k_mask({"a": None}, 1),
        ValueError,
        "k must be between 0 and the 0 scores that compete, got 1.",
    ),
    "k a float": (broken(ONE, 3.0), TypeError, "k must be an integer, got 3.0."),
    "k a float array": (
        broken(ONE, jnp.float32(3.0)),
        TypeError,
        "k must be an integer, got dtype float32.",
    ),
    "k of another shape": (
        broken(ONE, jnp.array([1, 2, 3]), axis=1),
        ValueError,
        "k must be one integer or, with axis=, an array that broadcasts to the shape (3, 1) of a "
        "sum over axis with keepdims=True; got shape (3,).",
    ),
    "k an array without axis": (
        broken(ONE, jnp.array([1, 2, 3])),
        ValueError,
        "k must be one integer or, with axis=, an array that broadcasts to the shape () of a "
        "sum over axis with keepdims=True; got shape (3,).",
    ),
    "axis too large": (
        broken(ONE, 1, axis=2),
        ValueError,
        "axis=2 does not name different axes of scores of shape (3, 4): give numbers from -2 to "
        "1, each axis once.",
    ),
    "axis twice": (
        broken(ONE, 1, axis=(0, -2)),
        ValueError,
        "axis=(0, -2) does not name different axes of scores of shape (3, 4): give numbers from "
        "-2 to 1, each axis once.",
    ),
    "axis a float": (
        broken(ONE, 1, axis=0.5),
        TypeError,
        "axis must be an integer or a tuple of them, got 0.5.",
    ),
    "NaN": (
        broken(ONE.at[1, 1].set(NAN), 1),
        ValueError,
        "the array of scores has 1 NaN entries of 12. Check the gradients or the parameters that "
        "it was computed from, or replace NaN before the selection.",
    ),
    "NaN in a tree": (
        lambda: global_top_k_mask({"encoder": {"kernel": jnp.array([NAN, 1.0, NAN])}}, 1),
        ValueError,
        "score 'encoder/kernel' has 2 NaN entries of 3. Check the gradients or the parameters "
        "that it was computed from, or replace NaN before the selection.",
    ),
    "complex": (
        broken(jnp.ones(3, jnp.complex64), 1),
        TypeError,
        "scores must be floating-point, integer or boolean, got dtype complex64: other types "
        "have no order. Score them by a real number, such as jnp.abs(scores).",
    ),
    "kinds": (
        lambda: global_top_k_mask({"a": jnp.arange(3), "b": {"c": jnp.ones(2)}}, 1),
        TypeError,
        "scores of different kinds cannot be ranked together ('a': int32, 'b/c': float32). "
        "Floating-point types may differ; convert the leaves to one type.",
    ),
    "too large": (
        lambda: jax.eval_shape(lambda x: top_k_mask(x, 1), LARGE),
        ValueError,
        "the array of scores has 2147483648 entries that compete (shape (65536, 32768)); at most "
        "2147483647 of one array can. Select along an axis (axis=) or split the array.",
    ),
    "a leaf too large": (
        lambda: jax.eval_shape(lambda x: global_top_k_mask({"w": x}, 1), LARGE),
        ValueError,
        "score 'w' has 2147483648 entries that compete (shape (65536, 32768)); at most 2147483647 "
        "of one array can. Select along an axis (axis=) or split the array.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_says_what_is_wrong(name: str):
    call, kind, text = ERRORS[name]
    with pytest.raises(kind) as raised:
        call()
    assert str(raised.value) == text


def test_the_remedy_for_a_large_array_works():
    assert jax.eval_shape(lambda x: top_k_mask(x, 1, axis=0), LARGE).shape == LARGE.shape


@pytest.mark.usefixtures("asked_for_checks")
@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: global_top_k_mask({"a": {"kernel": x}}, 1), "score 'a/kernel' has 1 NaN"),
        (refuse_nan, "the array of scores has 1 NaN entries"),
    ],
    ids=["selection", "check"],
)
def test_checkify_reports_nan_by_path(function: Callable[[jax.Array], Any], text: str):
    checked = checkify.checkify(jax.jit(function), errors=checkify.user_checks)
    error, _ = checked(jnp.array([1.0, NAN]))
    assert text in str(error.get())
    error, _ = checked(jnp.array([1.0, 2.0]))
    assert error.get() is None


# One device: another program is compiled, so it is run in a process that has no more.


@pytest.fixture(scope="module")
def one_device() -> dict[str, Any]:
    """What `one_device.py` found in a process of its own."""
    flags = "--xla_force_host_platform_device_count=1"
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.one_device"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_on_one_device_the_masks_are_those_of_a_stable_sort(one_device: dict[str, Any]):
    assert one_device["devices"] == 1
    assert one_device["selections"] > 50
    assert one_device["wrong"] == []


def test_on_one_device_a_program_stores_no_image_of_the_scores(one_device: dict[str, Any]):
    assert set(one_device["bytes_per_score"]) == {"float32", "bfloat16", "int32", "axes", "tree"}
    assert max(one_device["bytes_per_score"].values()) <= 1.0


def test_for_a_pod_of_tpus_counts_are_summed_one_by_one(one_device: dict[str, Any]):
    """A reduction of several operands gathers its partial results from all devices."""
    assert one_device["reads_of_several"]["cpu"] > 0
    assert one_device["reads_of_several"]["tpu"] == 0
