"""Sparse fine-tuning: how many entries move and when, where they may, and what follows them."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import recovery
from jaxprune.recovery import deltas as deltas_module

K, EVERY, ACCUMULATE, STEPS = 10, 4, 2, 12
SHAPE = (2, 6, 6)  # two layers of a stack


def model(params: Any, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, w: (x + x @ w, None), x, params["kernel"])[0]


@pytest.fixture(scope="module")
def problem() -> Any:
    """A stacked weight of which a third is pruned, its deltas, and dense gradients by step."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=SHAPE).astype(np.float32)
    masks = {"kernel": jnp.asarray(rng.permutation(72).reshape(SHAPE) % 3 != 0)}
    params = {"kernel": jnp.where(masks["kernel"], kernel, 0.0)}
    graph = jaxprune.trace(model, params, jnp.ones((3, 6)))
    deltas = recovery.sparse_deltas(
        params, 2 * K, key=jax.random.key(0), masks=masks, where="kernel", graph=graph
    )
    grads = [{"kernel": jnp.asarray(g)} for g in rng.normal(size=(STEPS, *SHAPE)).astype("f")]
    return params, masks, deltas, grads


def run(tx: Any, problem: Any, wrap: Any = lambda step: step) -> list[Any]:
    """The deltas and states before the first step and after each."""
    _, masks, deltas, grads = problem

    @wrap
    def step(deltas: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, deltas, masks=masks)
        return optax.apply_updates(deltas, updates), state

    found = [(deltas, tx.init(deltas))]
    for gradient in grads:
        found.append(step(*found[-1], gradient))
    return found


def learning_rate(step: Any) -> Any:
    """A schedule that is zero at the last step."""
    return jnp.where(step < STEPS - 1, 0.01, 0.0)


RATE = recovery.linear_rate(0.5, STEPS)
OPTIONS: Any = {"steps": STEPS, "rate": RATE, "every": EVERY, "accumulate": ACCUMULATE}


@pytest.fixture(scope="module")
def sft_ag(problem: Any) -> Any:
    tx = recovery.sft_ag(learning_rate, **OPTIONS)
    return "sft_ag", tx, run(tx, problem)


@pytest.fixture(scope="module")
def sft_ma(problem: Any) -> Any:
    tx = recovery.sft_ma(learning_rate, **OPTIONS)
    return "sft_ma", tx, run(tx, problem)


@pytest.fixture(scope="module", params=["sft_ag", "sft_ma"])
def ran(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def entries(deltas: Any) -> np.ndarray:
    return np.asarray(deltas["kernel"].indices)


def test_entries_move_after_the_steps_that_they_should(ran: Any) -> None:
    name, _, found = ran
    for step, (before, after) in enumerate(itertools.pairwise(found)):
        changed = (entries(before[0]) != entries(after[0])).sum(axis=1)
        if step % EVERY != ACCUMULATE - 1:
            assert not changed.any(), step
        elif step == ACCUMULATE - 1 and name == "sft_ma":
            assert (changed == K).all()  # all of them
        elif step == ACCUMULATE - 1:
            # All but those that are chosen again.
            kept = [
                np.isin(a, b).sum()
                for a, b in zip(*map(entries, (before[0], after[0])), strict=True)
            ]
            chosen = np.asarray(after[1].candidates["kernel"].indices)
            again = [np.isin(a, b).sum() for a, b in zip(entries(before[0]), chosen, strict=True)]
            assert kept == again
            assert (changed == K - np.asarray(again)).all()
        else:
            most = int(K * RATE(step + 1))
            assert (changed == most).all() or (name == "sft_ag" and (changed < most).any()), step


def test_entries_are_distinct_and_on_kept_weights(ran: Any, problem: Any) -> None:
    params, masks, _, _ = problem
    kept = np.asarray(masks["kernel"]).reshape(2, -1)
    for deltas, _ in ran[2]:
        for layer, indices in enumerate(entries(deltas)):
            assert len(set(indices.tolist())) == K
            assert kept[layer][indices].all()
    last = ran[2][-1][0]
    change = np.asarray(recovery.merge(params, None, last)["kernel"]) - np.asarray(params["kernel"])
    assert 0 < (change != 0).sum() <= 2 * K
    assert not change[~np.asarray(masks["kernel"])].any()


def test_grown_entries_start_at_zero_and_the_others_keep_what_they_have(ran: Any) -> None:
    moves = 0
    for step in range(ACCUMULATE - 1, STEPS, EVERY):
        (before, state), (after, _) = ran[2][step], ran[2][step + 1]
        moved = entries(before) != entries(after)
        assert (np.asarray(after["kernel"].values)[moved] == 0).all()
        if int(state.step) > 0:
            assert (np.asarray(after["kernel"].values)[~moved] != 0).all()
        moves += moved.sum()
    assert moves >= K


def test_moments_follow_the_entries(sft_ag: Any, problem: Any) -> None:
    found, grads = sft_ag[2], problem[3]
    step = EVERY + ACCUMULATE - 1  # of the second move
    before, after = found[step], found[step + 1]
    grown = entries(before[0]) != entries(after[0])
    assert grown.any()
    # Three gradients were seen of candidates: at the step before the window, and two in it.
    seen = np.stack([np.asarray(g["kernel"]).reshape(2, -1) for g in grads[EVERY - 1 : step + 1]])
    here = np.take_along_axis(seen, entries(after[0])[None], axis=2)
    moments = after[1].moments["kernel"]
    assert (np.asarray(moments.age)[grown] == 3.0).all()
    mean = (here.mean(0) * (1 - 0.9**3))[grown]
    np.testing.assert_allclose(np.asarray(moments.mean)[grown], mean, rtol=1e-5)
    square = ((here**2).mean(0) * (1 - 0.999**3))[grown]
    np.testing.assert_allclose(np.asarray(moments.square)[grown], square, rtol=1e-5)
    # Those that stay were updated by the step's gradient.
    old = np.asarray(before[1].moments["kernel"].mean)
    want = 0.9 * old + 0.1 * np.take_along_axis(seen[-1], entries(before[0]), axis=1)
    np.testing.assert_allclose(np.asarray(moments.mean)[~grown], want[~grown], rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["sft_ma", pytest.param("sft_ag", marks=pytest.mark.slow)],  # each compiles all again
)
def test_under_jit_as_without(name: str, problem: Any, request: pytest.FixtureRequest) -> None:
    _, tx, eager = request.getfixturevalue(name)
    for one, other in zip(eager, run(tx, problem, jax.jit), strict=True):
        np.testing.assert_array_equal(entries(one[0]), entries(other[0]))
        np.testing.assert_allclose(one[0]["kernel"].values, other[0]["kernel"].values, rtol=1e-5)


def test_the_learning_rate_may_be_a_schedule(ran: Any) -> None:
    values = [np.asarray(deltas["kernel"].values) for deltas, _ in ran[2]]
    assert not (values[0] == values[1]).any()
    np.testing.assert_array_equal(values[-1], values[-2])


def test_values_decay_without_a_gradient() -> None:
    made = recovery.sparse_deltas(PARAMS, 4, key=KEY)["kernel"]
    delta = recovery.SparseDelta(made.indices, made.values + 2.0, made.layout)
    adam = recovery.AgedAdam(weight_decay=0.5)
    after, _ = adam.step(delta, adam.init(delta), PARAMS["kernel"], 0.1)
    np.testing.assert_allclose(after.values, 1.9, rtol=1e-6)


def test_clipping_goes_in_front() -> None:
    made = recovery.sparse_deltas(PARAMS, 4, key=KEY)
    tx = optax.chain(optax.clip_by_global_norm(1.0), recovery.sft_ma(0.1, **OPTIONS))
    grads = {"kernel": jnp.full((4, 4), 100.0)}
    _, state = tx.update(grads, tx.init(made), made, masks=None)
    rows = np.asarray(state[1].moments["kernel"].rows)
    assert rows.max() == pytest.approx(1 / 16)  # the square of a gradient of norm 1, spread evenly


def test_shares_by_size() -> None:
    params = {"large": jnp.zeros((8, 8)), "small": jnp.zeros((4, 4)), "bias": jnp.zeros(8)}
    made = jax.eval_shape(lambda: recovery.sparse_deltas(params, 11, key=KEY))
    found = {path: delta.indices.shape for path, delta in made.items()}
    assert found == {"large": (8,), "small": (2,)}
    assert recovery.count_trainable(made) == 10


def test_entries_are_drawn_by_the_key() -> None:
    first, other = (
        recovery.sparse_deltas(PARAMS, 4, key=jax.random.key(seed))["kernel"].indices.tolist()
        for seed in (0, 1)
    )
    assert first != other
    assert first == sorted(set(first)) and set(first) <= set(range(16))


KEY = jax.random.key(0)
PARAMS = {"kernel": jnp.zeros((4, 4))}


def update(grads: Any, *deltas: Any) -> Any:
    made = recovery.sparse_deltas(PARAMS, 4, key=KEY)
    tx = recovery.sft_ma(0.1, **OPTIONS)
    return tx.update(grads, tx.init(made), *(deltas or (made,)))


WRONG: dict[str, tuple[Any, str]] = {
    "no entry": (
        lambda: recovery.sparse_deltas(PARAMS, 0, key=KEY),
        "count=0 leaves no entry for any of the 1 weights, which have 16 together. Give a larger "
        "count.",
    ),
    "more than kept": (
        lambda: recovery.sparse_deltas(
            PARAMS, 5, key=KEY, masks={"kernel": jnp.eye(4, dtype=bool)}
        ),
        "the share of 'kernel' is 5 entries for each matrix, of which 4 are kept. Give a smaller "
        "count, or leave the weight out with where=.",
    ),
    "accumulate": (
        lambda: recovery.sft_ag(0.1, steps=10, rate=RATE, every=5, accumulate=5),
        "accumulate must be from 1 to every - 1 = 4, got 5. It is the steps that a move looks at.",
    ),
    "steps": (
        lambda: recovery.sft_ma(0.1, steps=0, rate=RATE),
        "steps must be 1 or more, got 0. It is all of training.",
    ),
    "rate": (
        lambda: recovery.linear_rate(1.5, 10),
        "initial must be in [0, 1], got 1.5. It is the share of the entries that the first move "
        "takes.",
    ),
    "rate's steps": (
        lambda: recovery.cosine_rate(0.5, 0),
        "steps must be 1 or more, got 0. It is the length of training.",
    ),
    "gradients of the deltas": (
        lambda: update({"kernel": jnp.zeros(4)}),
        "grads has shape (4,) for 'kernel', whose weight has shape (4, 4). Differentiate the loss "
        "with regard to recovery.effective_params(params, masks, deltas), not to the deltas.",
    ),
    "no gradient": (
        lambda: update({}),
        "grads has nothing for 'kernel', whose weight has shape (4, 4). Differentiate the loss "
        "with regard to recovery.effective_params(params, masks, deltas), not to the deltas.",
    ),
    "no deltas": (
        lambda: update({"kernel": jnp.zeros((4, 4))}, None),
        "update needs the deltas: tx.update(grads, state, deltas).",
    ),
    "a rate out of range": (
        lambda: run_once(recovery.sft_ma(0.1, **(OPTIONS | {"rate": lambda step: 2.0}))),
        "rate gives 2.0 at step 6; it must be a share in [0, 1] of the entries.",
    ),
    "a matrix beyond 32 bits": (
        lambda: recovery.sparse_deltas(
            {"kernel": jax.ShapeDtypeStruct((1 << 16, 1 << 15), jnp.float32)}, 4, key=KEY
        ),
        "'kernel' has a matrix of 2147483648 entries; indices are 32-bit and reach 2147483647. "
        "Leave it out with where=.",
    ),
}


def run_once(tx: Any) -> Any:
    made = recovery.sparse_deltas(PARAMS, 4, key=KEY)
    return tx.update(PARAMS, tx.init(made), made)


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_fine_tuned(case: str) -> None:
    call, text = WRONG[case]
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == text


def test_large_weights_are_searched_and_small_ones_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = jnp.asarray(np.random.default_rng(0).integers(0, 5, size=40).astype(np.float32))
    scores = scores.at[3].set(-jnp.inf)
    want = np.sort(np.argsort(-np.asarray(scores), kind="stable")[:17])  # ties to the lower index
    np.testing.assert_array_equal(deltas_module.largest(scores, 17), want)
    monkeypatch.setattr(deltas_module, "_SORTED", 0)
    np.testing.assert_array_equal(deltas_module.largest(scores, 17), want)
