"""Sparse fine-tuning as its authors' code computes it: steps, candidates, drop and grow."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import recovery

Recorded = Callable[[str], Any]
RATES = {"linear": recovery.linear_rate, "cosine": recovery.cosine_rate}
TRAINED, FIRST_MOVE = 3, 5  # steps before candidates are chosen; step after which all are moved


@pytest.fixture
def data(recorded: Recorded) -> Any:
    return recorded("sft")


def start(data: Any) -> tuple[Any, recovery.SparseDelta]:
    """The recorded weight, whose rows are outputs: SM3 treats rows and columns alike."""
    params = {"kernel": jnp.asarray(data["W"])}
    made = recovery.sparse_deltas(params, len(data["indices0"]), key=jax.random.key(0))["kernel"]
    indices, values = jnp.asarray(data["indices0"]), jnp.asarray(data["values0"])
    return params, recovery.SparseDelta(indices, values, made.layout)


def count(data: Any, kind: str, step: int) -> int:
    """How many entries are moved after a step."""
    hyper = data.settings
    rate = RATES[kind](hyper["initial_reselection_rate"], hyper["total_update_steps"])
    return int(hyper["k"] * (1.0 if step == FIRST_MOVE else rate(step)))


def check(data: Any, tag: str, params: Any, delta: recovery.SparseDelta, *, slots: bool) -> None:
    """The delta after a move, and the merged weight; which slot took which entry where fixed."""
    want = data.under(tag)
    same = dict(zip(want["indices"].tolist(), want["values"].tolist(), strict=True))
    assert sorted(delta.indices.tolist()) == sorted(same)
    values = [same[i] for i in delta.indices.tolist()]
    np.testing.assert_allclose(delta.values, values, rtol=1e-5)
    if slots:
        np.testing.assert_array_equal(delta.indices, want["indices"])
    merged = recovery.merge(params, None, {"kernel": delta})["kernel"]
    np.testing.assert_allclose(merged, want["merged"], rtol=1e-5)


@functools.cache  # once for all of a recording's settings
def compiled(optimizer: Any, name: str) -> Any:
    """A method of an optimizer under jit."""
    static = ("gradients_per_step",) if hasattr(optimizer, "observe") and name == "move" else ()
    return jax.jit(getattr(optimizer, name), static_argnames=static)


def trained(data: Any, tag: str, optimizer: Any, delta: recovery.SparseDelta) -> tuple[Any, Any]:
    """The delta and the moments after the first steps."""
    moments, step = optimizer.init(delta), compiled(optimizer, "step")
    for number in range(TRAINED):
        gradient = jnp.asarray(data["G"][number])
        delta, moments = step(delta, moments, gradient, data.settings["lr"])
        want = data[f"{tag}/values_after_3_steps"][number]
        np.testing.assert_allclose(delta.values, want, rtol=1e-5)
    return delta, moments


def test_growth_by_accumulated_gradients(data: Any) -> None:
    (b1, b2), eps = data.settings["betas"], data.settings["eps_adam"]
    adam = recovery.AgedAdam(b1, b2, eps)
    params, before = start(data)
    for match in data.matches(r"(rigl_(\w+)_(\d+))/indices"):
        tag, want = match[1], data.under(match[1])
        delta, moments = trained(data, tag, adam, before)
        for name, got in zip(("exp_avg", "exp_avg_sq", "age"), moments, strict=True):
            np.testing.assert_allclose(got, want[f"state_{name}"], rtol=1e-5)
        seen = compiled(adam, "candidates")(delta, jnp.asarray(data["G"][TRAINED]))
        for gradient in jnp.asarray(data["G"][TRAINED:]):
            seen = compiled(adam, "observe")(delta, seen, gradient)
        order = np.argsort(want["cand_indices"])
        got = jax.tree.map(lambda leaf: np.asarray(leaf)[np.argsort(seen.indices)], seen)
        np.testing.assert_array_equal(got.indices, want["cand_indices"][order])
        np.testing.assert_allclose(got.total, want["cand_grads"][order], rtol=1e-5)
        np.testing.assert_allclose(got.squares, want["cand_grads_sq"][order], rtol=1e-5)
        np.testing.assert_allclose(got.seen, want["cand_samples"][order])
        moved, moments = compiled(adam, "move")(
            delta,
            moments,
            seen,
            jnp.int32(count(data, match[2], int(match[3]))),
            gradients_per_step=data.settings["grad_accumulation_steps"],
        )
        check(data, tag, params, moved, slots=True)
        for name, got in zip(("exp_avg", "exp_avg_sq", "age"), moments, strict=True):
            np.testing.assert_allclose(got, want[f"new_{name}"], rtol=1e-5)


def test_growth_by_sm3(data: Any) -> None:
    sm3 = recovery.SparseSM3(data.settings["eps_sm3"])
    params, before = start(data)
    for match in data.matches(r"(sm3_(\w+)_(\d+))/indices"):
        tag, step = match[1], int(match[3])
        delta, moments = trained(data, tag, sm3, before)
        np.testing.assert_allclose(moments.rows, data[f"{tag}/row_acc"], rtol=1e-5)
        np.testing.assert_allclose(moments.columns, data[f"{tag}/col_acc"], rtol=1e-5)
        moved = compiled(sm3, "move")(delta, moments, jnp.int32(count(data, match[2], step)))
        # Where all entries move, torch hands out the slots in no particular order; a slot of this
        # optimizer remembers nothing.
        check(data, tag, params, moved, slots=step != FIRST_MOVE)
