"""Gradual pruning: what is its own, beside the laws of all transforms."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import jaxprune
from jaxprune import NM, Block, Channel, Unstructured, allocation, schedules, scores

RAMP = schedules.linear(0.0, 0.75, begin=1, end=6)


def weights(*names: str) -> dict[str, jax.Array]:
    """Weights of one shape, since every new one has to be compiled."""
    draws = np.random.default_rng(0)
    return {name: jnp.asarray(draws.normal(size=(8, 8)), jnp.float32) for name in names or ["k"]}


def kept(state: Any) -> dict[str, Any]:
    return {name: int(mask.sum()) for name, mask in jaxprune.get_masks(state).items()}


def masks_of(tx: Any, params: Any, calls: int) -> list[Any]:
    """The state after each of some calls with gradients of one."""
    state, found = tx.init(params), []
    for _ in range(calls):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
        found.append(state)
    return found


def test_plain_sgd_runs_strictly_and_compiled():
    tx = jaxprune.gradual(optax.sgd(0.1), RAMP, every=2, packed=True)
    params = weights()
    state, step = tx.init(params), jax.jit(tx.update)
    for _ in range(8):
        updates, state = step(params, state, params)
        params = optax.apply_updates(params, updates)
        assert int((params["k"] != 0).sum()) == kept(state)["k"]
    assert kept(state) == {"k": 16}


def test_the_last_update_lands_on_the_end_however_every_divides():
    for every, steps in {1: [1, 2, 3, 4, 5, 6], 2: [1, 3, 5, 6], 4: [1, 5, 6], 9: [1, 6]}.items():
        states = masks_of(jaxprune.gradual(optax.sgd(0.1), RAMP, every=every), weights(), 8)
        counts = [kept(state)["k"] for state in states]
        last = {call: max([s for s in steps if s <= call], default=0) for call in range(8)}
        assert counts == [round(64 * (1 - RAMP.at(last[call]))) for call in range(8)]
        changed = [call for call, (a, b) in enumerate(itertools.pairwise([64, *counts])) if a != b]
        assert changed[-1] == 6


def test_a_number_is_reached_at_the_first_call():
    states = masks_of(jaxprune.gradual(optax.sgd(0.1), 0.75), weights(), 2)
    assert [kept(state)["k"] for state in states] == [16, 16]


def test_the_present_weights_decide():
    params = {"k": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
    tx = jaxprune.gradual(optax.sgd(1.0), schedules.one_shot(0.5, step=1))
    state = tx.init(params)
    updates, state = tx.update({"k": jnp.array([[-9.0, 0.0, 0.0, 0.0]])}, state, params)
    params = optax.apply_updates(params, updates)
    updates, state = tx.update({"k": jnp.zeros((1, 4))}, state, params)
    assert optax.apply_updates(params, updates)["k"].tolist() == [[10.0, 0.0, 0.0, 4.0]]


def test_pruned_weights_stay_pruned_whatever_their_scores_become():
    rise = schedules.linear(0.0, 0.75, begin=0, end=4)
    steps = itertools.count()

    def restless(params: Any, grads: Any) -> Any:
        return scores.random(params, jax.random.key(next(steps)))

    states = masks_of(jaxprune.gradual(optax.sgd(0.1), rise, score=restless), weights(), 5)
    found = [jaxprune.get_masks(state)["k"] for state in states]
    assert not any(bool((b & ~a).any()) for a, b in itertools.pairwise(found))
    assert next(steps) == 5


def test_a_falling_schedule_brings_weights_back_at_zero():
    fall = schedules.linear(0.75, 0.25, begin=0, end=1)
    params = weights()
    tx = jaxprune.gradual(optax.sgd(0.0), fall)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    assert kept(state) == {"k": 48}
    assert int((params["k"] != 0).sum()) == 16


def test_an_optax_schedule_is_read_inside_jit():
    tx = jaxprune.gradual(optax.sgd(0.1), optax.linear_schedule(0.0, 0.75, 6), every=3)
    params, step = weights(), jax.jit(tx.update)
    state, counts = tx.init(params), []
    for _ in range(8):
        updates, state = step(params, state, params)
        params = optax.apply_updates(params, updates)
        counts.append(kept(state)["k"])
    assert counts == [64, 64, 64, 40, 40, 40, 16, 16]


def test_a_schedule_of_ones_own_with_an_end_is_tabulated():
    @dataclasses.dataclass(frozen=True)
    class Stairs:
        begin: int = 0
        end: int = 4

        def at(self, step: int) -> float:
            return 0.25 * (step // 2)

        def __call__(self, step: Any) -> Any:
            raise AssertionError

    states = masks_of(jaxprune.gradual(optax.sgd(0.1), Stairs()), weights(), 6)
    assert [kept(state)["k"] for state in states] == [64, 64, 48, 48, 32, 32]


def test_a_schedule_of_ones_own_without_an_end_goes_on():
    class Forever:
        begin, end = 0, None

        def at(self, step: int) -> float:
            return 0.0

        def __call__(self, step: Any) -> Any:
            return jnp.minimum(0.25 * jnp.asarray(step, jnp.float32), 0.75)

    states = masks_of(jaxprune.gradual(optax.sgd(0.1), Forever()), weights(), 5)
    assert [kept(state)["k"] for state in states] == [64, 48, 32, 16, 16]


@pytest.mark.parametrize(
    ("pattern", "holds"),
    [
        (NM(1, 4), [False, False, False, True]),
        (Block((4, 4)), [True] * 4),
        (Channel(-1), [True] * 4),
    ],
    ids=repr,
)
def test_patterns_grow_with_the_schedule(pattern: Any, holds: list[bool]):
    ramp = schedules.linear(0.0, 0.75, begin=0, end=3)
    states = masks_of(jaxprune.gradual(optax.sgd(0.1), ramp, pattern=pattern), weights(), 4)
    assert [kept(state)["k"] for state in states] == [64, 48, 32, 16]
    found = [bool(pattern.holds(jaxprune.get_masks(state)["k"])) for state in states]
    assert found == holds


def test_patterns_by_name_end_at_their_own_sparsity():
    pattern = {"a": NM(2, 4), ".": Unstructured()}
    ramp = schedules.linear(0.0, 0.75, begin=0, end=2)
    states = masks_of(jaxprune.gradual(optax.sgd(0.1), ramp, pattern=pattern), weights("a", "c"), 3)
    assert [kept(state) for state in states] == [
        {"a": 64, "c": 64},
        {"a": 48, "c": 40},
        {"a": 32, "c": 16},
    ]


def test_allocations_divide_the_budget_at_every_update():
    params = {"a": weights()["k"], "c": 1e6 * weights()["k"]}
    ramp = schedules.linear(0.0, 0.75, begin=0, end=2)
    want = {
        allocation.global_(min_kept=5): [(64, 64), (16, 64), (5, 27)],
        allocation.per_layer({"a": 0.5}): [(64, 64), (48, 40), (32, 16)],
        allocation.erdos_renyi_kernel: [(64, 64), (40, 40), (16, 16)],
    }
    for rule, counts in want.items():
        states = masks_of(jaxprune.gradual(optax.sgd(0.1), ramp, allocation=rule), params, 3)
        assert [tuple(kept(state).values()) for state in states] == counts


def test_stacked_layers_are_pruned_each():
    stack = jnp.stack([scale * weights()["k"] for scale in (1.0, 100.0)])
    states = masks_of(
        jaxprune.gradual(optax.sgd(0.1), 0.5, layers={"k": 0}, pattern=NM(2, 4)), {"k": stack}, 1
    )
    assert jaxprune.get_masks(states[0])["k"].sum((1, 2)).tolist() == [32, 32]


def test_where_chooses():
    params = weights("a", "c")
    for where in ("^a$", lambda path, leaf: path == "a", {"a": True, "c": False}):
        state = jaxprune.gradual(optax.sgd(0.1), 0.5, where=where).init(params)
        assert state.masks["c"] == optax.MaskedNode()
        assert state.masks["a"].all()


def test_taylor_scores_read_the_gradients_of_the_step():
    params = {"k": jnp.ones((1, 4))}
    tx = jaxprune.gradual(optax.sgd(0.0), 0.5, score=scores.taylor)
    grads = {"k": jnp.array([[3.0, 0.0, -2.0, 1.0]])}
    _, state = tx.update(grads, tx.init(params), params)
    assert jaxprune.get_masks(state)["k"].tolist() == [[True, False, True, False]]


def test_masked_gradients_are_an_argument():
    params = {"k": jnp.array([[1.0, 2.0]])}
    grads = {"k": jnp.array([[40.0, 3.0]])}
    inner = optax.chain(optax.clip_by_global_norm(1.5), optax.sgd(1.0))
    moved = []
    for masked in (False, True):
        tx = jaxprune.gradual(inner, 0.5, mask_gradients=masked)
        _, state = tx.update(grads, tx.init(params), params)
        updates, _ = tx.update(grads, state, {"k": jnp.array([[0.0, 2.0]])})
        moved.append(float(updates["k"][0, 1]))
    assert moved[0] == pytest.approx(-1.5 * 3 / np.hypot(40.0, 3.0))
    assert moved[1] == pytest.approx(-1.5)


def test_the_fingerprint_tells_recipes_apart_and_knows_equal_ones():
    def fingerprint(sparsity: Any = 0.5, **settings: Any) -> int:
        state: Any = jaxprune.gradual(optax.sgd(0.1), sparsity, **settings).init(weights())
        return int(state.fingerprint)

    assert fingerprint() == fingerprint()
    assert fingerprint(packed=True) == fingerprint()
    others = [
        fingerprint(0.25),
        fingerprint(RAMP),
        fingerprint(RAMP, every=2),
        fingerprint(pattern=NM(2, 4)),
        fingerprint(pattern=NM(1, 2)),
        fingerprint(allocation=allocation.erdos_renyi_kernel),
        fingerprint(score=scores.taylor),
        fingerprint(mask_gradients=True),
    ]
    assert len({fingerprint(), *others}) == 9


@pytest.mark.usefixtures("asked_for_checks")
def test_nan_scores_are_found_under_checkify():
    tx, params = jaxprune.gradual(optax.sgd(0.1), 0.5), {"a": {"kernel": jnp.full((1, 2), jnp.nan)}}
    update = checkify.checkify(jax.jit(tx.update), errors=checkify.user_checks)
    error, _ = update(params, tx.init(params), params)
    assert "score 'a/kernel' has 2 NaN entries" in (error.get() or "")


@pytest.mark.usefixtures("asked_for_checks")
def test_a_schedule_that_leaves_its_range_is_found_under_checkify():
    def doubles(step: Any) -> jax.Array:
        return jnp.asarray(step, jnp.float32) * 0.5

    tx, params = jaxprune.gradual(optax.sgd(0.1), doubles), weights()
    update = checkify.checkify(jax.jit(tx.update), errors=checkify.user_checks)
    state, errors = tx.init(params), []
    for _ in range(3):
        error, (_, state) = update(params, state, params)
        errors.append(error.get())
    assert errors[:2] == [None, None]
    assert "the sparsity schedule gives 1.0" in errors[2]
