"""Pruning in rounds: counts, nested masks, masks that come back, and layer collapse."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import allocation, initial, scores

DEPTH = 6


def apply(params: Any, x: jax.Array) -> jax.Array:
    for layer in range(DEPTH):
        x = x @ params[f"k{layer}"]
        x = x if layer == DEPTH - 1 else jax.nn.relu(x)
    return x


def loss(params: Any, x: jax.Array) -> jax.Array:
    return -jnp.mean(jax.nn.log_softmax(apply(params, x))[:, 0])


@pytest.fixture
def params(key: jax.Array) -> dict[str, jax.Array]:
    widths = [16, 128, 16, 128, 16, 128, 4]
    keys = jax.random.split(key, DEPTH)
    return {
        f"k{i}": jax.random.normal(keys[i], (a, b)) * (2 / a) ** 0.5
        for i, (a, b) in enumerate(itertools.pairwise(widths))
    }


@pytest.fixture
def batch(key: jax.Array) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(key, 1), (8, 16))


def synflow(params: Any, masks: Any) -> Any:
    return scores.synflow(apply, params, jnp.ones((1, 16)), masks=masks)


def counts(masks: Any) -> list[int]:
    return [int(mask.sum()) for mask in masks.values()]


def spied(score_fn: Callable[[Any, Any], Any], seen: list[Any]) -> Callable[[Any, Any], Any]:
    """The score function, which notes the masks that it is given."""

    def noted(params: Any, masks: Any) -> Any:
        seen.append({path: np.asarray(mask) for path, mask in masks.items()})
        return score_fn(params, masks)

    return noted


def test_synflow_keeps_every_layer_where_snip_loses_one(params: Any, batch: jax.Array):
    sparsity = 0.999
    ranking = allocation.global_()
    by_snip = jaxprune.make_masks(scores.snip(loss, params, [batch]), sparsity, allocation=ranking)
    by_synflow = initial.iterate(params, synflow, sparsity, rounds=30)
    assert sum(counts(by_snip)) == sum(counts(by_synflow))
    assert min(counts(by_snip)) == 0
    assert min(counts(by_synflow)) > 0


def test_the_masks_of_the_rounds_are_nested_and_counted(params: Any):
    seen: list[Any] = []
    last = initial.iterate(params, spied(synflow, seen), 0.9, rounds=4)
    size = sum(leaf.size for leaf in params.values())
    course = [0.0, *(initial.exponential(0.9, k, 4) for k in range(1, 5))]
    assert [sum(counts(m)) for m in (*seen, last)] == [round(size * (1 - s)) for s in course]
    for before, after in zip(seen, [*seen[1:], last], strict=True):
        assert all(not np.any(np.asarray(after[path]) & ~before[path]) for path in before)


def test_masks_are_nested_even_if_the_scores_turn_around(key: jax.Array):
    params = {"kernel": jax.random.normal(key, (8, 8))}
    seen: list[Any] = []

    def turning(params: Any, masks: Any) -> Any:
        return {"kernel": params["kernel"] * (-1.0) ** len(seen)}

    last = initial.iterate(params, spied(turning, seen), 0.75, rounds=3)
    assert not np.any(np.asarray(last["kernel"]) & ~seen[-1]["kernel"])
    back = initial.iterate(params, spied(turning, seen), 0.75, rounds=3, regrow=True)
    assert np.any(np.asarray(back["kernel"]) & ~seen[-1]["kernel"])
    assert counts(last) == counts(back) == [16]


def test_one_round_of_snip_is_snip(params: Any, batch: jax.Array):
    def snip(params: Any, masks: Any) -> Any:
        return scores.snip(loss, params, [batch], masks=masks)

    once = initial.iterate(params, snip, 0.8, rounds=1)
    want = jaxprune.make_masks(snip(params, None), 0.8, allocation=allocation.global_())
    assert all(np.array_equal(once[path], want[path]) for path in params)


def test_force_brings_weights_back(params: Any, batch: jax.Array):
    seen: list[Any] = []

    def snip(params: Any, masks: Any) -> Any:
        return scores.snip(loss, params, [batch], masks=masks)

    last = initial.iterate(params, spied(snip, seen), 0.95, rounds=3, regrow=True)
    steps = zip(seen, [*seen[1:], last], strict=True)
    assert any(np.any(np.asarray(b[p]) & ~a[p]) for a, b in steps for p in params)


def test_a_pattern_and_an_allocation_are_obeyed(key: jax.Array):
    params = {"one": jax.random.normal(key, (8, 8)), "two": jax.random.normal(key, (8, 16))}

    def score_fn(params: Any, masks: Any) -> Any:
        return jax.tree.map(jnp.abs, params)

    pattern = jaxprune.NM(1, 4)
    masks = initial.iterate(
        params, score_fn, 0.75, rounds=3, pattern=pattern, allocation=allocation.uniform
    )
    assert all(bool(pattern.holds(mask)) for mask in masks.values())
    assert counts(masks) == [16, 32]


@pytest.mark.parametrize("course", [initial.exponential, initial.linear])
def test_courses_rise_to_the_target(course: Any):
    for rounds in (1, 7, 100):
        values = [course(0.999, k, rounds) for k in range(1, rounds + 1)]
        assert values == sorted(set(values))
        assert values[-1] == 0.999


def magnitude(params: Any, masks: Any) -> Any:
    return jax.tree.map(jnp.abs, params)


def refused(error: type[Exception], score_fn: Any = magnitude, **settings: Any) -> str:
    with pytest.raises(error) as info:
        initial.iterate({"kernel": jnp.ones((4, 4))}, score_fn, **{"sparsity": 0.5} | settings)
    return str(info.value)


def test_bad_numbers_are_refused():
    assert refused(ValueError, sparsity=1.0) == (
        "sparsity must be a finite number in [0, 1), got 1.0. A sparsity is the share of zeros: "
        "0.9 prunes 90% of the weights."
    )
    assert refused(ValueError, rounds=0) == (
        "rounds must be 1 or more, got 0. One round is one-shot pruning."
    )
    assert refused(TypeError, rounds=2.5) == "rounds must be an integer, got 2.5 of type float."


def test_bad_courses_are_refused():
    assert refused(ValueError, schedule=lambda s, k, n: s / k, rounds=2) == (
        "schedule falls from 0.5 to 0.25 in round 2 of 2: what is pruned does not come back. Let "
        "it rise, or pass regrow=True."
    )
    assert refused(ValueError, schedule=lambda s, k, n: 0.4, rounds=2) == (
        "schedule ends at 0.4 after 2 rounds, not at sparsity=0.5. Return sparsity when round == "
        "rounds."
    )


def test_bad_scores_are_refused_by_path():
    assert refused(ValueError, lambda p, m: {"kernel": jnp.ones((4, 2))}) == (
        "score_fn must return floating-point scores of shape (4, 4) for 'kernel', got float32 of "
        "shape (4, 2). Give it and iterate the same where=."
    )
    assert "for 'kernel', got none." in refused(ValueError, lambda p, m: {})
    found = refused(ValueError, lambda p, m: {"kernel": jnp.full((4, 4), jnp.nan)})
    assert found.startswith("score 'kernel' has 16 NaN entries of 16.")
