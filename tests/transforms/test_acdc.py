"""AC/DC: when masks change, what each phase trains, and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import NM
from jaxprune.transforms.acdc import _phases
from tests.third_party import inner

SGD = inner(optax.sgd(0.125, momentum=0.5))


def weights(seed: int = 0) -> dict[str, jax.Array]:
    one, two = jax.random.split(jax.random.key(seed))
    return {"in": jax.random.normal(one, (8, 8)), "out": 4 * jax.random.normal(two, (8, 4))}


def run(tx: Any, calls: int) -> list[tuple[Any, Any, Any]]:
    """Train and return parameters, masks and the optimizer's momentum after each call."""
    params = weights()
    opt_state, found = tx.init(params), []
    for call in range(calls):
        updates, opt_state = tx.update(weights(100 + call), opt_state, params)
        params = optax.apply_updates(params, updates)
        (trace,) = jax.tree.leaves(opt_state.inner_state, is_leaf=_is_trace)[:1]
        state = params, jaxprune.get_masks(opt_state), trace.trace
        found.append(jax.device_get(state))
    return found


def _is_trace(node: Any) -> bool:
    return isinstance(node, optax.TraceState)


def kept(masks: Any) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


@pytest.mark.parametrize(
    ("arguments", "table"),
    [
        # ResNet-50 in 100 epochs, WideResNet in 200, and there with shorter dense phases.
        ((10, 5, 85, None), [10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 85]),
        ((10, 20, 170, None), [10, 30, 50, 70, 90, 110, 130, 150, 170]),
        ((10, 20, 175, 13), [10, 30, 43, 63, 76, 96, 109, 129, 142, 162, 175]),
    ],
)
def test_the_published_phases(arguments: tuple[Any, ...], table: list[int]):
    begin, every, end, decompressed = arguments
    phases = _phases(begin, every, end, decompressed)
    assert phases.steps() == table
    steps = jnp.arange(end + 3, dtype=jnp.int32)
    fires, index = jax.jit(jax.vmap(lambda step: (phases.fires(step), phases.index(step))))(steps)
    assert np.flatnonzero(fires).tolist() == table
    assert np.asarray(index)[table].tolist() == list(range(len(table)))


def test_phases_alternate_and_the_whole_model_is_ranked_at_once():
    calls = run(jaxprune.acdc(SGD, 0.75, begin=1, every=2, decompressed=3, end=7), 9)
    counts = [kept(masks) for _, masks, _ in calls]
    assert counts == [96, 24, 24, 96, 96, 96, 96, 24, 24]
    # Those of the second layer are four times as large: a share of each layer would be 16 and 8.
    before = weights()
    updated = {name: w - 0.125 * weights(100)[name] for name, w in before.items()}
    sizes = np.sort(np.abs(np.concatenate([np.ravel(w) for w in updated.values()])))[::-1]
    for name, mask in calls[1][1].items():
        np.testing.assert_array_equal(mask, np.abs(updated[name]) >= sizes[23])
    assert calls[1][1]["out"].sum() > calls[1][1]["in"].sum()


def test_a_compressed_phase_trains_the_live_weights_alone():
    calls = run(jaxprune.acdc(SGD, 0.75, begin=1, every=3, end=7), 5)
    (first, masks, _), (last, opened, _) = calls[1], calls[4]
    for name, mask in masks.items():
        np.testing.assert_array_equal(calls[3][1][name], mask)
        assert (first[name][~mask] == 0.0).all()
        assert (last[name][~mask] == 0.0).all()
        assert (last[name][mask] != first[name][mask]).all()
        assert opened[name].all()


def test_weights_come_back_from_zero_without_momentum():
    calls = run(jaxprune.acdc(SGD, 0.75, begin=1, every=2, decompressed=3, end=6), 6)
    (_, masks, before), (opened, _, momentum), (moved, _, _) = calls[2:5]
    for name, mask in masks.items():
        assert (opened[name][~mask] == 0.0).all()
        assert (momentum[name][~mask] == 0.0).all()
        grads = np.asarray(weights(103)[name])
        np.testing.assert_array_equal(
            momentum[name][mask], (grads + np.float32(0.5) * before[name])[mask]
        )
        np.testing.assert_array_equal(
            moved[name][~mask], -0.125 * np.asarray(weights(104)[name])[~mask]
        )


def test_a_dense_and_a_sparse_model_come_out():
    calls = run(jaxprune.acdc(SGD, 0.75, begin=0, every=2, end=5), 8)
    dense, sparse = calls[4][0], calls[-1][0]
    assert all((w != 0.0).all() for w in dense.values())
    assert sum(int((w != 0.0).sum()) for w in sparse.values()) == 24


@pytest.mark.parametrize(
    "pattern", [NM(1, 4), {"in": NM(1, 4), "out": NM(2, 4)}], ids=["one", "by layer"]
)
def test_groups_keep_their_own_counts(pattern: Any):
    tx = jaxprune.acdc(SGD, 0.75, begin=0, every=2, end=4, pattern=pattern)
    calls = run(tx, 5)
    for name in ("in", "out"):
        wanted = pattern if isinstance(pattern, NM) else pattern[name]
        for call, open_ in enumerate([False, False, True, True, False]):
            mask = calls[call][1][name]
            groups = mask.reshape(-1, 4, mask.shape[1]).sum(axis=1)
            assert (groups == (4 if open_ else wanted.n)).all()


def test_the_end_that_was_not_reached_is_reported():
    tx = jaxprune.acdc(SGD, 0.75, begin=0, every=2, end=4)
    params = weights()
    assert jaxprune.check(params, tx.init(params)).problems == (
        "acdc: training stopped after 0 steps, before the schedule's end at step 4: its final "
        "sparsity was not reached. Reaching it takes 5 calls of update.",
    )


A_PHASE = "of one step, but weights that come back move from the second on. Pass decompressed=2"
BAD = {
    "no room": (
        {"begin": 3, "every": 2, "end": 6},
        ValueError,
        "begin=3, every=2 and decompressed=2 leave no decompressed phase before end=6: nothing "
        "would alternate. Shorten the phases or train longer; to prune once use jaxprune.gradual.",
    ),
    "short phases": (
        {"begin": 0, "every": 1, "end": 9},
        ValueError,
        f"every=1 makes decompressed phases {A_PHASE} or more.",
    ),
    "short dense phases": (
        {"begin": 0, "every": 3, "end": 9, "decompressed": 1},
        ValueError,
        f"decompressed=1 makes decompressed phases {A_PHASE} or more.",
    ),
    "begin": (
        {"begin": -1, "every": 2, "end": 9},
        ValueError,
        "begin must be a step of 0 or more, got -1.",
    ),
    "end": (
        {"begin": 0, "every": 2, "end": 9.0},
        TypeError,
        "end must be a step, an integer, got 9.0 of type float.",
    ),
    "every": (
        {"begin": 0, "every": 0, "end": 9},
        ValueError,
        "every must be 1 step or more, got 0.",
    ),
    "a sparsity that N:M does not have": (
        {"begin": 0, "every": 2, "end": 9, "pattern": NM(2, 4)},
        ValueError,
        "sparsity=0.75 cannot be reached with pattern=NM(n=2, m=4), whose sparsity is 0.5. Pass "
        "sparsity=0.5, or another pattern.",
    ),
}


@pytest.mark.parametrize(("arguments", "kind", "text"), BAD.values(), ids=BAD)
def test_what_is_refused(arguments: dict[str, Any], kind: type[Exception], text: str):
    with pytest.raises(kind) as error:
        jaxprune.acdc(SGD, 0.75, **arguments)
    assert str(error.value) == text
