"""Masks, and a gradual run, of jaxpruner."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from jaxprune import NM, allocation, schedules
from tests.oracles import exact, jaxpruner

Recorded = Callable[[str], Any]
Leaves = dict[str, jax.Array]


def magnitudes(data: Any) -> Leaves:
    return {name: jnp.abs(weight) for name, weight in data.under("w").items()}


def assert_equal(masks: Any, want: dict[str, np.ndarray]) -> None:
    for name, mask in want.items():
        np.testing.assert_array_equal(masks[name], mask.astype(bool))


def tags(data: Any, pattern: str) -> set[tuple[str, ...]]:
    """What the names of recorded masks vary over."""
    return {match.groups() for match in data.matches(f"{pattern}/[^/]+")}


def test_masks_by_layer_are_ours(recorded: Recorded):
    data = recorded("jaxpruner_masks")
    scores = magnitudes(data)
    for (text,) in tags(data, r"topk_([\d.]+)"):
        kept = {name: jaxpruner.kept(x.size, float(text)) for name, x in scores.items()}
        masks = jaxprune.make_masks(scores, float(text), allocation=exact.counts(kept), where=".*")
        assert_equal(masks, data.under(f"topk_{text}"))


def test_masks_of_one_ranking_are_ours(recorded: Recorded):
    data = recorded("jaxpruner_masks")
    weights = magnitudes(data)
    total = sum(x.size for x in weights.values())
    norms = {name: jnp.linalg.norm(x) + np.float32(1e-8) for name, x in weights.items()}
    for text, kind in tags(data, r"global_([\d.]+)_(l2norm|raw)"):
        scores = {n: x / norms[n] if kind == "l2norm" else x for n, x in weights.items()}
        target = exact.sparsity(jaxpruner.kept(total, float(text)), total)
        masks = jaxprune.make_masks(scores, target, allocation=allocation.global_(), where=".*")
        assert_equal(masks, data.under(f"global_{text}_{kind}"))


def test_nm_masks_are_ours_with_the_ties_turned_round(recorded: Recorded):
    data = recorded("jaxpruner_masks")
    scores = magnitudes(data)
    for match in data.matches(r"nm_(\d+)_(\d+)/(.+)_axis(-?\d+)"):
        n, m, axis = int(match[1]), int(match[2]), int(match[4])
        # Its ties go to the higher index, ours to the lower: turn the axis round, and back.
        turned = {match[3]: jnp.flip(scores[match[3]], axis)}
        pattern = NM(n, m, axis)
        masks = jaxprune.make_masks(
            turned, 1.0 - n / m, pattern=pattern, where=lambda path, leaf: True
        )
        got = jnp.flip(masks[match[3]], axis)
        np.testing.assert_array_equal(got, data[match[0]].astype(bool))


def test_ties_are_ours(recorded: Recorded):
    data = recorded("jaxpruner_masks")
    scores = jnp.asarray(data["ties/scores"])
    for match in data.matches(r"ties/topk_([\d.]+)"):
        kept = jaxpruner.kept(scores.size, float(match[1]))
        got = jaxprune.top_k_mask(scores, kept)
        np.testing.assert_array_equal(got, data[match[0]].astype(bool))


def test_a_gradual_run_is_ours(recorded: Recorded):
    data = recorded("jaxpruner_masks")
    told = data.settings["gmp"]
    calls = sorted(match[1] for match in data.matches(r"gmp/grad(\d+)"))
    kernel = start_of_run(data, f"gmp/w{calls[0]}")
    ramp = schedules.polynomial(
        0.0, told["sparsity"], begin=told["start"], end=told["end"], power=3.0, offset=1
    )
    every = told["update_freq"]
    schedule = jaxpruner.Gradual(ramp, every, kernel.size)
    tx = jaxprune.gradual(optimizer(told["inner"]), schedule, every=every)
    update = jax.jit(tx.update)
    params: Any = {"kernel": jnp.asarray(kernel)}
    state = tx.init(params)
    for call in calls:
        updates, state = update({"kernel": jnp.asarray(data[f"gmp/grad{call}"])}, state, params)
        params = optax.apply_updates(params, updates)
        mask = data[f"gmp/mask{call}"].astype(bool)
        np.testing.assert_array_equal(jaxprune.get_masks(state)["kernel"], mask)
        np.testing.assert_allclose(params["kernel"], data[f"gmp/w{call}"], rtol=0, atol=1e-6)
        assert not np.asarray(params["kernel"])[~mask].any()


def optimizer(text: str) -> optax.GradientTransformation:
    """The inner optimizer of a run, as in `sgd(0.1)`."""
    match = re.fullmatch(r"(\w+)\(([^()]+)\)", text)
    assert match, text
    return getattr(optax, match[1])(float(match[2]))


def start_of_run(data: Any, first: str) -> np.ndarray:
    """The kernel that a run starts from: the recorded one of its shape."""
    (start,) = [w for w in data.under("w").values() if w.shape == data[first].shape]
    return start
