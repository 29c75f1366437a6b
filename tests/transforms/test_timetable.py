"""When masks change: on the host and inside jit alike."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.transforms._timetable import Timetable, gate

WINDOWS = st.tuples(st.integers(0, 40), st.integers(1, 30), st.integers(0, 40))
STEPS = np.arange(120, dtype=np.int32)


@functools.cache
def _read(table: Timetable) -> tuple[np.ndarray, np.ndarray]:
    steps = jnp.asarray(STEPS)
    return np.asarray(table.fires(steps)), np.asarray(table.index(steps))


@hypothesis.given(WINDOWS)
def test_it_fires_at_its_steps_and_the_last_is_the_end(window: tuple[int, int, int]):
    begin, every, length = window
    table = Timetable(begin, every, begin + length)
    fires, _ = _read(table)
    assert STEPS[fires].tolist() == table.steps()
    assert table.steps()[0] == begin
    assert table.steps()[-1] == begin + length


@hypothesis.given(WINDOWS)
def test_the_index_is_the_place_among_its_steps(window: tuple[int, int, int]):
    begin, every, length = window
    table = Timetable(begin, every, begin + length)
    _, index = _read(table)
    assert [int(index[step]) for step in table.steps()] == list(range(len(table.steps())))


@hypothesis.given(st.integers(0, 40), st.integers(1, 30))
def test_without_an_end_it_goes_on(begin: int, every: int):
    fires, _ = _read(Timetable(begin, every, None))
    assert STEPS[fires].tolist() == list(range(begin, len(STEPS), every))


def test_steps_far_away_do_not_overflow():
    table = Timetable(2**30, 2**30, 2**31 - 2)
    steps = jnp.array([0, 2**30, 2**31 - 3, 2**31 - 2], jnp.int32)
    assert table.fires(steps).tolist() == [False, True, False, True]


@pytest.mark.parametrize("flags", [(True, False), (False, False), (True, True)])
def test_a_gate_chooses_for_each_of_a_batch_and_computes_if_one_is_due(flags: tuple[bool, bool]):
    computed = []

    def one(flag: jax.Array, old: jax.Array) -> jax.Array:
        def new() -> jax.Array:
            jax.debug.callback(lambda: computed.append(1))
            return old + 1.0

        return gate(flag, new, old)

    found = jax.jit(jax.vmap(one))(jnp.array(flags), jnp.zeros(2))
    jax.effects_barrier()
    assert found.tolist() == [float(flag) for flag in flags]
    assert bool(computed) == any(flags)


def test_a_gate_under_two_maps():
    def one(flag: jax.Array) -> jax.Array:
        return gate(flag, lambda: jnp.float32(1.0), jnp.float32(0.0))

    flags = jnp.array([[True, False], [False, False]])
    assert jax.vmap(jax.vmap(one))(flags).tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_a_gate_outside_jit_computes_what_is_due_alone():
    def never() -> jax.Array:
        raise AssertionError

    assert gate(jnp.array(False), never, 1.0) == 1.0
    with pytest.raises(AssertionError):
        gate(jnp.array(True), never, 1.0)
