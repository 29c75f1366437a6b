"""Zhu & Gupta's schedule as jaxpruner, AC/DC and movement pruning compute it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from jaxprune import schedules
from jaxprune.types import Schedule
from tests.oracles.jaxpruner import Gradual

Recorded = Callable[[str], Any]
TOLERANCE = 1e-6


def assert_follows(schedule: Schedule, steps: np.ndarray, want: np.ndarray) -> None:
    """The schedule gives these values on the host and inside jit."""
    host = [schedule.at(int(step)) for step in steps]
    np.testing.assert_allclose(host, want, rtol=0, atol=TOLERANCE)
    traced = jax.jit(schedule)(jnp.asarray(steps, jnp.int32))
    np.testing.assert_allclose(traced, want, rtol=0, atol=TOLERANCE)


def window(settings: Any) -> dict[str, int]:
    return {"begin": settings["start"], "end": settings["end"]}


def jaxpruner_ramp(settings: Any) -> schedules.Polynomial:
    """Jaxpruner's ramp, which runs one step ahead of the published one."""
    final, power = settings["final_sparsity"], settings["power"]
    return schedules.polynomial(0.0, final, power=power, offset=1, **window(settings))


def test_the_ramp_of_jaxpruner_is_ours_with_an_offset_of_1(recorded: Recorded):
    data = recorded("gradual_schedule")
    assert_follows(jaxpruner_ramp(data.settings), data["step"], data["jaxpruner_sparsity"])


def test_the_ramp_of_acdc_is_ours(recorded: Recorded):
    data = recorded("gradual_schedule")
    ours = schedules.polynomial(
        data.settings["acdc_initial"],
        data.settings["final_sparsity"],
        power=data.settings["power"],
        **window(data.settings),
    )
    assert_follows(ours, data["acdc_step"], data["acdc_poly_init005"])


def test_the_ramp_of_movement_pruning_is_ours_in_densities(recorded: Recorded):
    data = recorded("gradual_schedule")
    told = data.settings["movement"]
    # The reference counts what is kept, and its ends in units of warm-up.
    ours = schedules.cubic(
        1.0 - told["initial_threshold"],
        1.0 - told["final_threshold"],
        begin=told["initial_warmup"] * told["warmup_steps"],
        end=told["total_step"] - told["final_warmup"] * told["warmup_steps"],
    )
    assert_follows(ours, data["step"], 1.0 - data["movement_threshold"])
    # Its penalty follows the density: lambda_t = lambda_final * density_t / density_final.
    density = np.array([1.0 - ours.at(int(step)) for step in data["step"]])
    penalty = told["final_lambda"] * density / told["final_threshold"]
    np.testing.assert_allclose(penalty, data["movement_regu_lambda"], rtol=TOLERANCE)


def test_masks_change_when_those_of_jaxpruner_do(recorded: Recorded):
    data = recorded("gradual_schedule")
    every = data.settings["update_freq"]
    params = {"kernel": jnp.arange(4.0).reshape(2, 2)}
    schedule = Gradual(jaxpruner_ramp(data.settings), every, params["kernel"].size)
    tx = jaxprune.gradual(optax.sgd(0.0), schedule, every=every)

    def step(state: Any, count: jax.Array) -> tuple[Any, jax.Array]:
        _, state = tx.update(params, state, params)
        return state, state.health.changed == count

    steps = jnp.arange(data["step"].max() + 1, dtype=jnp.int32)
    _, changed = jax.lax.scan(step, tx.init(params), steps)
    np.testing.assert_array_equal(changed[data["step"]], data["jaxpruner_is_update"])
