"""Two-word counts agree with Python's integers, round 2**31 and far beyond."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune._core import counts
from jaxprune._core.counts import Count

BIG = (
    *(0, 1, 2**16 - 1, 2**16, 2**16 + 1, 2**31 - 1, 2**31, 2**31 + 1),
    *(2**32 - 1, 2**32, 3 * 2**31 + 12345, 2**40 - 1, 2**40, 2**46 - 1),
)
PAIRS = np.array(list(itertools.product(BIG, BIG)), np.int64)
A, B = PAIRS.T


def count(values: np.ndarray) -> Count:
    """The words of each value, computed in 64 bits on the host."""
    return Count(*(jnp.asarray(w, jnp.int32) for w in (values >> 16, values & 65535)))


def value(got: Count) -> np.ndarray:
    assert got.high.dtype == got.low.dtype == jnp.int32
    assert np.all((np.asarray(got.low) >= 0) & (np.asarray(got.low) < 65536))
    return np.asarray(got.high, np.int64) * 65536 + np.asarray(got.low, np.int64)


def test_sums_carry():
    np.testing.assert_array_equal(value(counts.plus(count(A), count(B))), A + B)


def test_differences_borrow_and_may_be_negative():
    np.testing.assert_array_equal(value(counts.minus(count(A), count(B))), A - B)


def test_comparisons_are_those_of_the_values():
    np.testing.assert_array_equal(counts.at_least(count(A), count(B)), A >= B)
    np.testing.assert_array_equal(counts.equal(count(A), count(B)), A == B)


def test_a_negative_count_is_below_zero():
    less = counts.minus(count(A), counts.plus(count(A), count(np.ones_like(A))))
    np.testing.assert_array_equal(value(less), -np.ones_like(A))
    assert not bool(counts.at_least(less, counts.as_count(0)).any())


def test_where_takes_both_words_from_one_side():
    got = counts.where(jnp.asarray(A < B), count(A), count(B))
    np.testing.assert_array_equal(value(got), np.minimum(A, B))


@pytest.mark.parametrize("most", [0, 1, 65536, 2**31 - 1])
def test_clipping_is_exact_on_both_sides(most: int):
    got = counts.between(counts.minus(count(A), count(B)), jnp.int32(most))
    np.testing.assert_array_equal(got, np.clip(A - B, 0, most))


def test_the_float_is_near_even_where_the_words_are_not():
    near = counts.to_float(count(A))
    np.testing.assert_allclose(near, A.astype(np.float64), rtol=2.0**-22)


def test_what_fits_returns_as_an_integer():
    small = A[A < 2**31]
    np.testing.assert_array_equal(counts.to_int(count(small)), small)


@pytest.mark.parametrize("number", BIG)
def test_an_integer_of_python_is_split_on_the_host(number: int):
    got = counts.as_count(number)
    assert isinstance(got.high, np.int32)
    assert value(got) == number


@pytest.mark.parametrize(
    ("dtype", "numbers"),
    [
        (jnp.int8, [0, 1, 127]),
        (jnp.uint8, [0, 255]),
        (jnp.int16, [0, 2**15 - 1]),
        (jnp.uint16, [0, 2**16 - 1]),
        (jnp.int32, [0, 65535, 65536, 2**31 - 1]),
        (jnp.uint32, [0, 2**31, 2**32 - 1]),
    ],
    ids=str,
)
def test_an_integer_of_any_width_is_split_inside_jit(dtype: Any, numbers: list[int]):
    got = jax.jit(counts.as_count)(jnp.array(numbers, dtype))
    np.testing.assert_array_equal(value(got), numbers)


def test_64_bits_are_split_inside_jit():
    with jax.enable_x64(True):
        got = jax.jit(counts.as_count)(jnp.array(BIG, jnp.int64))
    np.testing.assert_array_equal(value(got), BIG)


def test_a_sum_that_32_bits_do_not_hold_is_large_and_not_lost():
    assert int(counts.saturated(jnp.full(8, 2**30, jnp.int32))) == 2**31 - 1
    assert int(counts.saturated(jnp.full(4, 2**28 - 1, jnp.int32))) == 2**30 - 4  # exactly


@pytest.mark.parametrize("shape", [(), (7,), (3, 4, 5)], ids=str)
def test_flags_are_counted(rng: np.random.Generator, shape: tuple[int, ...]):
    flags = rng.integers(0, 2, shape).astype(bool)
    assert int(counts.how_many(jnp.asarray(flags))) == flags.sum()
