"""What holds for every schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import schedules
from jaxprune.types import Schedule
from tests.laws.measure import compilations
from tests.members import SCHEDULES, Row

STEPS = range(25)
every = pytest.mark.parametrize("row", SCHEDULES, ids=repr)
windowed = pytest.mark.parametrize(
    "row", [row for row in SCHEDULES if "window" in row.needs], ids=repr
)


def values(schedule: Schedule) -> list[float]:
    return [schedule.at(step) for step in STEPS]


@every
def test_it_keeps_the_protocol(row: Row):
    assert isinstance(row.make(), Schedule)


@every
def test_sparsities_rise_from_init_to_final_inside_the_unit_interval(row: Row):
    schedule = row.make()
    got = values(schedule)
    assert all(0.0 <= s < 1.0 for s in got)
    assert got == sorted(got)
    assert all(s == schedule.init for s in got[: schedule.begin or 0])
    assert all(s == schedule.final == 0.9 for s in got[schedule.end or 0 :])


@windowed
def test_the_window_is_where_it_moves(row: Row):
    schedule = row.make()
    got = values(schedule)
    assert schedule.begin < schedule.end
    assert len(set(got[schedule.begin : schedule.end])) > 5


@every
def test_the_host_value_is_a_float(row: Row):
    assert all(type(value) is float for value in values(row.make()))


@every
def test_the_traced_value_is_the_host_value_in_float32(row: Row):
    schedule = row.make()
    traced = jax.jit(schedule)
    for step, want in zip(STEPS, values(schedule), strict=True):
        for got in (schedule(step), schedule(np.int64(step)), traced(jnp.int32(step))):
            assert got.dtype == jnp.float32
            assert got.shape == ()
            np.testing.assert_allclose(got, want, rtol=0, atol=2e-7)


@every
def test_the_ends_are_exact_in_float32(row: Row):
    schedule = row.make()
    assert schedule(100) == np.float32(schedule.final)
    before = (schedule.begin or 0) - 1
    assert schedule(before) == np.float32(schedule.init)


@every
def test_it_takes_an_array_of_steps(row: Row):
    schedule = row.make()
    steps = jnp.arange(25).reshape(5, 5)
    got = schedule(steps)
    assert got.shape == (5, 5)
    want = [schedule.at(step) for step in STEPS]
    np.testing.assert_allclose(got.ravel(), want, rtol=0, atol=2e-7)


@every
def test_it_stays_float32_with_64_bit_types(row: Row):
    with jax.enable_x64(True):
        got = row.make()(jnp.asarray(12))
    assert got.dtype == jnp.float32


@every
def test_it_is_an_optax_schedule(row: Row):
    schedule = row.make()
    tx = optax.scale_by_schedule(schedule)
    state = tx.init(jnp.float32(0.0))
    for step in STEPS:
        update, state = tx.update(jnp.float32(1.0), state)
        assert float(jnp.asarray(update)) == pytest.approx(schedule.at(step), rel=0, abs=2e-7)


@every
def test_it_is_a_value(row: Row):
    schedule = row.make()
    assert hash(schedule) == hash(row.make())
    assert eval(repr(schedule), dict(vars(schedules))) == schedule == row.make()


@every
def test_the_second_call_compiles_nothing(row: Row):
    schedule = row.make()
    traced = jax.jit(schedule)
    for fn in (schedule, traced):
        fn(jnp.int32(3))
        step = jnp.int32(11)
        with compilations() as found:
            fn(step)
        assert not found
