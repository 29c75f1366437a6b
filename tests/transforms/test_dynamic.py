"""What drop-and-grow methods promise beyond the common checks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import transforms
from jaxprune.transforms import _regrow
from tests.third_party import inner, leniently

SGD = inner(optax.sgd(0.125))
SHAPE = (8, 16)


def weights(seed: int = 0) -> dict[str, jax.Array]:
    return {"kernel": jax.random.normal(jax.random.key(seed), SHAPE)}


def run(tx: Any, calls: int, grads: Callable[[int], Any] = lambda call: weights(100 + call)) -> Any:
    """Train and return parameters, state, and the masks after each call."""
    params = weights()
    opt_state, masks = tx.init(params), []
    for call in range(calls):
        updates, opt_state = tx.update(grads(call), opt_state, params)
        params = optax.apply_updates(params, updates)
        masks.append(np.asarray(jaxprune.get_masks(opt_state)["kernel"]))
    return params, opt_state, masks


def test_it_grows_where_the_gradient_is_largest_and_drops_the_least() -> None:
    tx = jaxprune.dynamic(SGD, 0.75, every=1, end=2, drop=0.25)
    params = weights()
    opt_state = tx.init(params)
    first = np.asarray(jaxprune.get_masks(opt_state)["kernel"])
    updates, opt_state = tx.update(weights(1), opt_state, params)
    params = optax.apply_updates(params, updates)
    before = np.abs(np.asarray(params["kernel"]))
    grads = weights(2)
    _, opt_state = tx.update(grads, opt_state, params)
    last = np.asarray(jaxprune.get_masks(opt_state)["kernel"])

    stay = first & (before >= np.sort(before[first])[8])
    grown = last & ~stay
    assert (first.sum(), stay.sum(), grown.sum()) == (32, 24, 8)
    assert (last & stay).sum() == 24
    size = np.abs(np.asarray(grads["kernel"]))
    assert size[grown].min() > size[~last].max()


def test_a_grown_weight_starts_at_zero_and_moves_in_the_next_call() -> None:
    tx = jaxprune.rigl(SGD, 0.75, every=2, end=4, drop=0.5)
    before, _, masks = run(tx, 3)
    after, _, _ = run(tx, 4)
    grown = masks[2] & ~masks[1]
    assert grown.any()
    assert (np.asarray(before["kernel"])[grown] == 0.0).all()
    assert (np.asarray(after["kernel"])[grown] != 0.0).all()


@pytest.mark.parametrize("regrow", [True, False])
def test_what_was_just_dropped_may_grow_or_not(regrow: bool) -> None:
    tx = jaxprune.rigl(SGD, 0.75, every=1, end=2, drop=0.5, regrow=regrow)
    params = weights()
    opt_state = tx.init(params)
    first = jaxprune.get_masks(opt_state)["kernel"]
    params = {"kernel": jnp.where(first, params["kernel"], 0.0)}
    # The dropped have the largest gradients, and the others small ones.
    grads = {"kernel": jnp.where(first, 10.0, 1.0)}
    for _ in range(2):
        _, opt_state = tx.update(grads, opt_state, params)
    last = jaxprune.get_masks(opt_state)["kernel"]
    assert bool((first == last).all()) is regrow
    assert int(last.sum()) == 32


@pytest.mark.parametrize("pattern", [jaxprune.NM(1, 4), jaxprune.Block((4, 2))], ids=repr)
def test_patterns_hold_while_masks_move(pattern: Any) -> None:
    _, _, masks = run(jaxprune.set_training(SGD, 0.75, every=1, end=6, pattern=pattern), 6)
    assert len({mask.tobytes() for mask in masks}) > 3
    for mask in masks:
        assert bool(pattern.holds(jnp.asarray(mask)))
        assert mask.sum() == 32


def test_stacked_layers_keep_their_own_counts() -> None:
    _, _, masks = run(jaxprune.rigl(SGD, 0.75, every=1, end=6, drop=0.5, layers={"kernel": 0}), 6)
    assert (masks[0] != masks[-1]).any()
    for mask in masks:
        np.testing.assert_array_equal(mask.sum(axis=1), [4] * 8)


def test_random_growth_depends_on_the_seed_and_repeats_with_it() -> None:
    some, same, other = (
        run(jaxprune.set_training(SGD, 0.75, every=1, end=4, seed=seed), 4)[2][-1]
        for seed in (1, 1, 2)
    )
    assert (some == same).all()
    assert (some != other).any()


def test_growth_sees_the_mean_dense_gradient_of_micro_steps() -> None:
    parts = [weights(7), weights(8)]
    mean = {"kernel": (parts[0]["kernel"] + parts[1]["kernel"]) / 2}
    tx = jaxprune.rigl(SGD, 0.75, every=1, end=3, drop=0.5)
    _, _, whole = run(tx, 3, lambda call: mean)
    multi = optax.MultiSteps(tx, every_k_schedule=2)
    params = weights()
    state, update = multi.init(params), leniently(jax.jit(multi.update))
    for call in range(6):
        updates, state = update(parts[call % 2], state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(jaxprune.get_masks(state)["kernel"], whole[-1])


def test_itop_records_every_weight_that_was_live() -> None:
    tx = jaxprune.itop(SGD, 0.75, every=1, end=8, drop=0.5, growth=jaxprune.growth.random)
    first = np.asarray(jaxprune.get_masks(tx.init(weights()))["kernel"])
    _, opt_state, masks = run(tx, 8)
    fired = np.any([first, *masks], axis=0)
    assert float(jaxprune.itop_rate(opt_state)) == fired.mean() > 0.5
    packed = jaxprune.itop(
        SGD, 0.75, every=1, end=8, drop=0.5, growth=jaxprune.growth.random, packed=True
    )
    _, opt_state, _ = run(packed, 8)
    assert float(jaxprune.itop_rate(opt_state)) == fired.mean()


@pytest.mark.parametrize("share", [0.0, 1e-9, 0.3, 0.5, 0.75, 1.0 - 2.0**-32])
def test_shares_of_counts_are_whole_numbers(share: float) -> None:
    counts = [0, 1, 7, 10, 2**16, 2**16 + 1, 2**24 + 1, 10**9 + 7, 2**31 - 1]
    fixed = _regrow.as_fixed([share])
    found = _regrow.ceil_share(jnp.asarray(fixed)[0], jnp.asarray(counts, jnp.int32))
    assert found.tolist() == [-(-count * int(fixed[0]) // 2**32) for count in counts]


def test_top_kast_leaves_all_else_bit_identical_and_decays_what_explores() -> None:
    params = weights()
    flat = np.sort(np.abs(np.asarray(params["kernel"])).ravel())[::-1]
    tx = jaxprune.top_kast(SGD, 0.75, backward_sparsity=0.5, decay=0.5)
    zero = {"kernel": jnp.zeros(SHAPE)}
    updates, _ = tx.update(zero, tx.init(params), params)
    after = np.asarray(optax.apply_updates(params, updates)["kernel"])
    before = np.asarray(params["kernel"])
    size = np.abs(before)
    forward, backward = size >= flat[31], size >= flat[63]
    assert after[~backward].tobytes() == before[~backward].tobytes()
    np.testing.assert_allclose(after[forward], before[forward] * (1 - 0.125 * 0.5), rtol=1e-6)
    explores = backward & ~forward
    np.testing.assert_allclose(after[explores], before[explores] * (1 - 0.125 * 2.0), rtol=1e-6)


@pytest.mark.parametrize("every", [1, 3])
def test_top_kast_sees_the_largest_weights(every: int) -> None:
    tx = jaxprune.top_kast(SGD, 0.75, backward_sparsity=0.5, decay=0.0, every=every)
    params, opt_state, masks = run(tx, 4)
    seen = jaxprune.forward_params(params, opt_state)["kernel"]
    assert int((seen != 0).sum()) == 32
    if every == 1:
        np.testing.assert_array_equal(seen, jaxprune.final_params(params, opt_state)["kernel"])
    else:
        np.testing.assert_array_equal(seen != 0, masks[-1])
        assert (masks[0] == masks[2]).all()
    slope = jax.grad(lambda p: jnp.sum(jaxprune.forward_params(p, opt_state)["kernel"]))(params)
    assert bool((slope["kernel"] == 1.0).all())


def test_granet_prunes_and_then_regenerates_at_the_same_count() -> None:
    schedule = jaxprune.schedules.cubic(0.0, 0.75, begin=1, end=3)
    tx = jaxprune.granet(SGD, schedule, every=2, end=8, drop=0.5)
    _, _, masks = run(tx, 8)
    assert [int(mask.sum()) for mask in masks] == [128, 128, 128, 32, 32, 32, 32, 32]
    changed = [c for c in range(1, 8) if (masks[c] != masks[c - 1]).any()]
    assert changed == [3, 4, 6]
    assert (masks[4] & ~masks[3]).any()


def test_snfs_moves_weights_to_the_layer_of_larger_momentum() -> None:
    tx = jaxprune.snfs(SGD, 0.5, every=2, end=6, drop=0.25)
    params = {"a": weights(0), "b": weights(1)}
    opt_state = tx.init(params)
    for call in range(6):
        grads = {"a": weights(10 + call), "b": {"kernel": 4 * weights(20 + call)["kernel"]}}
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    masks = jaxprune.get_masks(opt_state)
    a, b = (int(masks[name]["kernel"].sum()) for name in "ab")
    assert a < 64 < b
    assert abs(a + b - 128) <= 8


MASKED = (
    "growth.gradient needs dense gradients, and every pruned weight has a gradient of exactly "
    "zero. Pass the gradients of the loss as they are, without masks, or use growth.random."
)


def test_masked_gradients_are_refused() -> None:
    tx = jaxprune.rigl(SGD, 0.75, every=1, end=3)
    params = weights()
    opt_state = tx.init(params)
    grads = {"kernel": jnp.where(jaxprune.get_masks(opt_state)["kernel"], 1.0, 0.0)}
    _, opt_state = tx.update(grads, opt_state, params)
    with pytest.raises(ValueError) as found:
        tx.update(grads, opt_state, params)
    assert str(found.value) == MASKED


SHARE = " It is the share of a layer's live weights that an update drops and grows anew."


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: jaxprune.rigl(SGD, 0.5, end=10, every=2, drop=1.0),
            "drop must be a share in [0, 1), got 1.0." + SHARE,
        ),
        (
            lambda: jaxprune.dynamic(SGD, 0.5, end=10, every=2, drop=-0.1),
            "drop must be a share in [0, 1), got -0.1." + SHARE,
        ),
        (
            lambda: jaxprune.dynamic(SGD, 0.5, end=10, every=2, drop=lambda s: s / 4).init(
                weights()
            ),
            "drop at step 4 must be a share in [0, 1), got 1.0." + SHARE,
        ),
        (
            lambda: jaxprune.set_training(SGD, 0.5, end=100, every=100),
            "every=100 leaves no update before end=100: masks would never change. Lower every, or "
            "train longer; for fixed masks use jaxprune.static.",
        ),
        (
            lambda: jaxprune.set_training(SGD, 0.5, end=10, begin=12),
            "begin=12 leaves no update before end=10: masks would never change. Begin earlier, or "
            "train longer; for fixed masks use jaxprune.static.",
        ),
        (
            lambda: jaxprune.itop(SGD, 0.5, end=10, begin=-1),
            "begin must be a step of 0 or more, got -1.",
        ),
        (
            lambda: jaxprune.dynamic(
                SGD, 0.5, end=9, every=2, allocation=jaxprune.allocation.global_()
            ),
            "allocation=Global(min_density=0.0, min_kept=0) needs scores, and the first masks are "
            "random. Use allocation.erdos_renyi_kernel, erdos_renyi, uniform or per_layer.",
        ),
        (
            lambda: jaxprune.top_kast(SGD, 0.5, backward_sparsity=0.75),
            "backward_sparsity=0.75 must not be above sparsity=0.5: the weights that the forward "
            "pass sees are among those that are updated.",
        ),
        (
            lambda: jaxprune.top_kast(SGD, 0.5, backward_sparsity=0.25, decay=-1.0),
            "decay must be a finite number of 0 or more, got -1.0. It pulls weights to zero, those "
            "that only explore the more; the paper uses 1e-4.",
        ),
        (
            lambda: transforms.growth.momentum(1.0),
            "decay must be in [0, 1), got 1.0. It is the share of the momentum that a call keeps; "
            "0.9 is usual.",
        ),
        (
            lambda: jaxprune.granet(SGD, 0.5, every=1, end=9),
            "every must be 2 or more, got 1: an update prunes in one call and regenerates in the "
            "next.",
        ),
        (
            lambda: jaxprune.itop_rate(jaxprune.rigl(SGD, 0.5, end=300).init(weights())),
            "opt_state holds no record of fired weights; its transforms are rigl. Train with "
            "jaxprune.itop.",
        ),
    ],
)
def test_errors_say_what_is_wrong(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError) as found:
        make()
    assert str(found.value) == text


def test_moments_of_parameters_that_are_one_array_start_anew() -> None:
    """Their path is empty, and ends that of every moment."""
    tx = jaxprune.set_training(optax.sgd(0.1, momentum=0.9), 0.5, every=2, end=3, where=".*")
    params = jnp.arange(1.0, 65.0).reshape(8, 8)
    opt_state = tx.init(params)
    before = jaxprune.get_masks(opt_state)
    for _ in range(3):
        updates, opt_state = tx.update(params, opt_state, params)
        params = optax.apply_updates(params, updates)
    changed = before != jaxprune.get_masks(opt_state)
    assert changed.any()
    assert (opt_state.inner_state[0].trace[changed] == 0.0).all()
    assert (opt_state.inner_state[0].trace[before & ~changed] != 0.0).all()


def test_a_growth_rule_that_forgets_a_weight_is_named() -> None:
    def forgetful(moment: Any, key: jax.Array) -> dict[str, jax.Array]:
        return {}

    tx = jaxprune.dynamic(SGD, 0.5, begin=0, every=2, end=9, growth=forgetful)
    params = weights()
    with pytest.raises(ValueError) as found:
        tx.update(params, tx.init(params), params)
    assert str(found.value) == (
        f"growth={__name__}.{forgetful.__qualname__} must return scores of shape (8, 16) for "
        "'kernel', got none. A growth rule is a function (moment, key) -> {path: scores}."
    )


def test_granet_must_reach_the_end_of_its_schedule() -> None:
    schedule = jaxprune.schedules.cubic(0.0, 0.5, begin=0, end=9)
    with pytest.raises(ValueError) as found:
        jaxprune.granet(SGD, schedule, every=4, end=9)
    assert str(found.value) == (
        f"end=9 and every=4 leave no update from step 9 on, where sparsity={schedule!r} ends. "
        "Train longer, or end the schedule earlier."
    )


def test_a_pattern_that_does_not_fit_can_be_left_out() -> None:
    params = {"kernel": jnp.ones((8, 16)), "odd": jnp.ones((6, 16))}
    settings: dict[str, Any] = {"every": 1, "end": 4, "pattern": jaxprune.NM(2, 4)}
    with pytest.raises(ValueError, match=r"'odd'.*where="):
        jaxprune.rigl(SGD, 0.5, where=".*", **settings).init(params)
    opt_state = jaxprune.rigl(SGD, 0.5, where="kernel", **settings).init(params)
    assert isinstance(jaxprune.get_masks(opt_state)["odd"], optax.MaskedNode)
