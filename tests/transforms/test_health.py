"""What brings pruned weights back is found, and what does not is not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import schedules

pytestmark = pytest.mark.standard_promotion

CAME_BACK = (
    "'{path}': {count} pruned weights are not zero. An optax link after the jaxprune transform, or "
    "around it, changes its updates: put the transform last, or mask with jaxprune.final_params."
)
NONFINITE = (
    "'{path}': {count} pruned weights were NaN or infinite, which no update turns into zero. Look "
    "for the cause in the optimizer or the learning rate."
)


def parameters() -> dict[str, Any]:
    draws = np.random.default_rng(0)
    return {name: jnp.asarray(draws.normal(size=(8, 8)), jnp.float32) for name in ("a", "c")}


def pruned(inner: Any = None, step: int = 0, **settings: Any) -> Any:
    inner = optax.adam(0.01) if inner is None else inner
    return jaxprune.gradual(inner, schedules.one_shot(0.75, step=step), where="a", **settings)


def train(tx: Any, calls: int, params: Any = None, *, compiled: bool = False) -> tuple[Any, Any]:
    tx = optax.with_extra_args_support(tx)
    params = parameters() if params is None else params
    state = tx.init(params)
    update = jax.jit(tx.update) if compiled else tx.update
    for call in range(calls):
        grads = jax.tree.map(lambda leaf: (call + 1.0) * leaf + 0.1, parameters())
        updates, state = update(grads, state, params, value=1.0)
        params = optax.apply_updates(params, updates)
    return params, state


AFTER = {
    "scale": optax.scale(0.5),
    "scale_by_learning_rate": optax.scale_by_learning_rate(0.5),
    "clip": optax.clip(1e-3),
    "clip_by_global_norm": optax.clip_by_global_norm(1e-3),
    "add_decayed_weights": optax.add_decayed_weights(-0.1),
    "ema": optax.ema(0.9),
    "add_noise": optax.add_noise(0.1, 0.1, 0),
    "trace": optax.trace(0.9),
    "scale_by_trust_ratio": optax.scale_by_trust_ratio(),
    "centralize": optax.centralize(),
    "apply_every": optax.apply_every(2),
}


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("name", AFTER)
def test_a_link_after_the_transform_is_found_at_once_and_later(name: str, calls: int):
    if name in ("ema", "trace"):  # what they add up starts with the update itself
        calls += 1
    params, state = train(optax.chain(pruned(), AFTER[name]), calls)
    count = int((params["a"][~jaxprune.get_masks(state)["a"]] != 0).sum())
    report = jaxprune.check(params, state)
    assert len(report.problems) == 1
    assert report.problems[0].startswith("'a': ")
    if name != "apply_every":
        assert report.problems == (CAME_BACK.format(path="a", count=max(count, _seen(state))),)
        assert count > 0


def _seen(state: Any) -> int:
    (found,) = jaxprune.transforms._state.find_states(state)
    return int(found.health.came_back.max())


@pytest.mark.parametrize("step", [0, 2])
def test_the_change_itself_is_looked_at_on_the_next_call(step: int):
    tx = optax.chain(pruned(step=step), optax.scale(0.5))
    assert _seen(train(tx, step + 1)[1]) == 0
    params, state = train(tx, step + 2)
    assert _seen(state) == 48
    cleaned = jaxprune.final_params(params, state)
    assert jaxprune.check(cleaned, state).problems == (CAME_BACK.format(path="a", count=48),)


def test_the_last_change_is_looked_at_too():
    ramp = schedules.linear(0.0, 0.75, begin=0, end=4)
    good = jaxprune.gradual(optax.sgd(0.1), ramp, every=2, where="a")
    bad = optax.chain(good, optax.scale_by_schedule(lambda step: jnp.where(step == 4, 0.5, 1.0)))
    params, state = train(bad, 5)
    assert jaxprune.check(params, state).problems == (CAME_BACK.format(path="a", count=24),)
    params, state = train(bad, 7)
    assert _seen(state) == 24
    assert int((params["a"] == 0).sum()) == 48


AROUND = {
    "mechanize": optax.contrib.mechanize,
    "schedule_free": lambda tx: optax.contrib.schedule_free(tx, 0.01, b1=0.9),
    "conditionally_transform": lambda tx: optax.conditionally_transform(
        tx, lambda step, **_: step % 2 == 0
    ),
}


@pytest.mark.parametrize("name", AROUND)
def test_a_wrapper_that_changes_updates_is_found(name: str):
    tx = AROUND[name](pruned(optax.sgd(0.1), step=1))
    params, state = train(tx, 4, compiled=True)
    (found,) = jaxprune.check(params, state).problems
    count = int(found.split()[1])
    assert found == CAME_BACK.format(path="a", count=count)
    assert count > 0


def test_lookahead_is_found_in_its_slow_weights():
    params = optax.LookaheadParams.init_synced(parameters())
    tx = optax.lookahead(pruned(optax.sgd(0.1)), sync_period=4, slow_step_size=0.5)
    state = tx.init(params)
    for _ in range(5):
        updates, state = tx.update(parameters(), state, params)
        params = optax.apply_updates(params, updates)
    assert not jaxprune.check(params.slow, state).ok
    final = jaxprune.final_params(params.slow, state)
    assert int((final["a"] == 0).sum()) == 48


def test_all_is_well_without_such_a_link():
    for tx in (
        pruned(),
        optax.chain(optax.clip_by_global_norm(0.1), pruned()),
        optax.chain(pruned(), optax.scale(1.0)),
        optax.chain(pruned(), optax.keep_params_nonnegative()),
        optax.chain(pruned(), optax.zero_nans()),
    ):
        for calls in (0, 1, 4):
            params, state = train(tx, calls)
            if calls:
                assert jaxprune.check(params, state).problems == ()


def test_static_finds_a_link_after_it_when_it_starts_from_dense_parameters():
    masks = {"a": np.arange(64).reshape(8, 8) < 16}
    for calls in (1, 3):
        tx = optax.chain(jaxprune.static(optax.sgd(0.1), masks), optax.scale(0.5))
        params, state = train(tx, calls)
        assert jaxprune.check(params, state).problems == (CAME_BACK.format(path="a", count=48),)
        params, state = train(jaxprune.static(optax.sgd(0.1), masks), calls)
        assert jaxprune.check(params, state).ok


def test_parameters_that_are_still_dense_are_no_problem_before_the_first_call():
    masks = {"a": np.arange(64).reshape(8, 8) < 16}
    state = jaxprune.static(optax.sgd(0.1), masks).init(parameters())
    assert jaxprune.check(parameters(), state).ok


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_weights_that_are_not_finite_are_counted(bad: float):
    masks = {"a": np.arange(64).reshape(8, 8) < 16}
    params = parameters()
    params["a"] = params["a"].at[7].set(bad).at[0].set(bad)
    for calls in (1, 3):
        found, state = train(jaxprune.static(optax.sgd(0.1), masks), calls, params)
        assert jaxprune.check(found, state).problems == (NONFINITE.format(path="a", count=8),)


@pytest.mark.parametrize(("calls", "said"), [(1, True), (4, True), (5, False)])
def test_a_schedule_that_was_not_reached_is_said(calls: int, said: bool):
    ramp = schedules.linear(0.0, 0.75, begin=0, end=4)
    params, state = train(jaxprune.gradual(optax.sgd(0.1), ramp, where="a"), calls)
    text = (
        f"gradual: training stopped after {calls} steps, before the schedule's end at step 4: its "
        "final sparsity was not reached. Reaching it takes 5 calls of update."
    )
    assert jaxprune.check(params, state).problems == ((text,) if said else ())


def test_seeds_that_are_mapped_over_are_looked_at_together():
    tx = optax.chain(pruned(optax.sgd(0.1)), optax.scale(0.5))
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, 2.0 * leaf]), parameters())
    state = jax.vmap(tx.init)(params)
    updates, state = jax.vmap(tx.update)(params, state, params)
    params = optax.apply_updates(params, updates)
    assert jaxprune.check(params, state).problems == (CAME_BACK.format(path="a", count=96),)


def test_a_transparent_sam_around_it_is_refused():
    tx = optax.contrib.sam(pruned(optax.sgd(0.1)), optax.sgd(0.1), opaque_mode=False)
    params = parameters()
    state = tx.init(params)
    with pytest.raises(TypeError) as error:
        for _ in range(3):
            _, state = tx.update(params, state, params)
    assert str(error.value) == (
        "the stored mask of 'a' has dtype int32, not bool: a transform around gradual computes "
        "with its state, as optax.contrib.sam does with opaque_mode=False. Put it inside, around "
        "the optimizer."
    )
