"""The numbers of each schedule, and what its constructor refuses."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import schedules


def test_the_cubic_follows_its_formula():
    ramp = schedules.cubic(0.1, 0.9, begin=10, end=30)
    for step in range(10, 31):
        left = (1.0 - (step - 10) / 20) ** 3
        assert ramp.at(step) == pytest.approx(0.9 + (0.1 - 0.9) * left, abs=1e-15)


def test_the_cubic_is_a_polynomial_of_power_3_and_the_linear_of_power_1():
    window = {"begin": 3, "end": 9}
    assert schedules.cubic(0.0, 0.5, **window) == schedules.polynomial(0.0, 0.5, **window)
    assert schedules.linear(0.0, 0.5, **window) == schedules.polynomial(0.0, 0.5, power=1, **window)


def test_the_cosine_is_half_way_in_the_middle_and_flat_at_the_ends():
    ramp = schedules.cosine(0.2, 0.8, begin=0, end=1000)
    assert ramp.at(500) == pytest.approx(0.5)
    assert ramp.at(1) - ramp.at(0) < 1e-5
    assert ramp.at(1000) - ramp.at(999) < 1e-5


def test_an_offset_runs_ahead_but_not_before_the_window():
    plain = schedules.polynomial(0.0, 0.9, begin=10, end=20)
    ahead = schedules.polynomial(0.0, 0.9, begin=10, end=20, offset=3)
    assert [ahead.at(t) for t in range(10, 20)] == [plain.at(t + 3) for t in range(10, 20)]
    assert ahead.at(9) == 0.0
    assert float(ahead(9)) == 0.0
    assert float(ahead(10)) == pytest.approx(plain.at(13))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.5, 3.0, 7.0])
@pytest.mark.parametrize("length", [3, 15, 49, 1000, 16_777_217])
def test_the_end_is_exact_inside_jit(power: float, length: int):
    ramp = schedules.polynomial(0.0, 0.9, begin=1, end=1 + length, power=power)
    traced = jax.jit(ramp)
    assert traced(jnp.int32(length + 1)) == np.float32(0.9)
    assert 0.0 <= float(traced(jnp.int32(length))) <= np.float32(0.9)


def test_a_ramp_may_fall():
    ramp = schedules.linear(0.8, 0.4, begin=0, end=4)
    assert [ramp.at(t) for t in range(5)] == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4])


def test_large_steps_stay_exact():
    jump = schedules.one_shot(0.5, step=2**24 + 1)
    assert float(jump(jnp.int32(2**24))) == 0.0
    assert float(jump(jnp.int32(2**24 + 1))) == 0.5


def test_numbers_of_numpy_become_python_numbers():
    shares: list[Any] = [np.float32(0.0), np.float64(0.5)]
    steps: list[Any] = [np.int32(0), np.int64(4)]
    ramp = schedules.cubic(*shares, begin=steps[0], end=steps[1])
    assert repr(ramp) == ("Polynomial(init=0.0, final=0.5, begin=0, end=4, offset=0, power=3.0)")


def test_one_shot_has_a_window_of_one_step_and_constant_has_none():
    assert (schedules.one_shot(0.5, step=3).begin, schedules.one_shot(0.5, step=3).end) == (3, 3)
    assert (schedules.constant(0.5).begin, schedules.constant(0.5).end) == (None, None)
    assert schedules.one_shot(0.5, step=3).init == 0.0
    assert schedules.constant(0.5).init == schedules.constant(0.5).final == 0.5


SHARE = "A sparsity is the share of zeros: 0.9 prunes 90% of the weights."
RAMPS: list[Callable[..., Any]] = [
    schedules.cubic,
    schedules.linear,
    schedules.cosine,
    schedules.polynomial,
]
ramps = pytest.mark.parametrize("ramp", RAMPS)


@pytest.mark.parametrize("value", [1.0, 1.5, -0.1, math.nan, math.inf, np.float32(2)])
@ramps
def test_a_ramp_refuses_a_sparsity_out_of_range(ramp: Callable[..., Any], value: float):
    tail = f" must be a finite number in [0, 1), got {float(value)}. {SHARE}"
    with pytest.raises(ValueError) as error:
        ramp(0.0, value, begin=0, end=4)
    assert str(error.value) == "final" + tail
    with pytest.raises(ValueError) as error:
        ramp(value, 0.5, begin=0, end=4)
    assert str(error.value) == "init" + tail


@pytest.mark.parametrize("make", [schedules.one_shot, schedules.constant])
def test_a_jump_refuses_a_sparsity_out_of_range(make: Callable[..., Any]):
    with pytest.raises(ValueError) as error:
        make(1.0)
    assert str(error.value) == f"sparsity must be a finite number in [0, 1), got 1.0. {SHARE}"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("0.9", "'0.9' of type str"),
        (True, "True of type bool"),
        (None, "None of type NoneType"),
        ([0.5], "[0.5] of type list"),
        (0.5j, "0.5j of type complex"),
    ],
)
def test_a_sparsity_must_be_a_number(value: Any, shown: str):
    with pytest.raises(TypeError) as error:
        schedules.cubic(0.0, value, begin=0, end=4)
    assert str(error.value) == f"final must be a number in [0, 1), got {shown}. {SHARE}"


def test_a_sparsity_must_be_known_when_the_schedule_is_built():
    @jax.jit
    def build(sparsity: Any) -> jax.Array:
        return schedules.constant(sparsity)(0)

    with pytest.raises(TypeError, match=r"^sparsity must be a number in \[0, 1\), got "):
        build(jnp.float32(0.5))


@ramps
@pytest.mark.parametrize(("begin", "end"), [(5, 5), (6, 5)])
def test_a_ramp_refuses_an_empty_window(ramp: Callable[..., Any], begin: int, end: int):
    with pytest.raises(ValueError) as error:
        ramp(0.0, 0.9, begin=begin, end=end)
    assert str(error.value) == (
        f"begin={begin} and end={end} leave an empty window: end must be greater than begin. "
        "To prune in a single step, use one_shot(sparsity, step=...)."
    )


@ramps
@pytest.mark.parametrize("name", ["begin", "end"])
@pytest.mark.parametrize(
    ("value", "shown"),
    [(1e3, "1000.0 of type float"), (True, "True of type bool"), (None, "None of type NoneType")],
)
def test_a_step_must_be_an_integer(ramp: Callable[..., Any], name: str, value: Any, shown: str):
    with pytest.raises(TypeError) as error:
        ramp(0.0, 0.9, **({"begin": 0, "end": 4} | {name: value}))
    assert str(error.value) == (
        f"{name} must be an integer number of steps, got {shown}. Write int(...) around it."
    )


@pytest.mark.parametrize("value", [-1, 2**31])
def test_a_step_must_be_in_range(value: int):
    tail = (
        f" must be in [0, 2**31), got {value}. Steps are counted from 0, one for each call of the "
        "optimizer's update."
    )
    with pytest.raises(ValueError) as error:
        schedules.one_shot(0.5, step=value)
    assert str(error.value) == "step" + tail
    with pytest.raises(ValueError) as error:
        schedules.polynomial(0.0, 0.5, begin=0, end=4, offset=value)
    assert str(error.value) == "offset" + tail


@pytest.mark.parametrize("power", [0, -1.0, math.nan, math.inf, "3", True])
def test_a_power_must_be_a_positive_number(power: Any):
    with pytest.raises(ValueError) as error:
        schedules.polynomial(0.0, 0.9, begin=0, end=4, power=power)
    assert str(error.value) == (
        f"power must be a finite number above 0, got {power!r}. "
        "3 is the cubic schedule, 1 the linear one."
    )
