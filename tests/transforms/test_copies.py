"""State leaves that an optimizer copies from the parameters: found, and zero where pruned."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune.transforms._copies import copied_leaves
from tests import third_party

PARAMS = {"bias": jnp.ones(8), "kernel": jnp.arange(1.0, 65.0).reshape(8, 8)}
MASK = np.arange(64).reshape(8, 8) >= 32


class Masters(NamedTuple):
    """A state with float32 copies of bfloat16 parameters, and their average."""

    master: Any
    average: Any
    count: Any


def float32_masters(rate: float) -> optax.GradientTransformation:
    """Round float32 weights to the parameters' type at every step."""

    def init(params: Any) -> Masters:
        wide = jax.jit(lambda tree: jax.tree.map(lambda p: p.astype(jnp.float32), tree))(params)
        return Masters(wide, jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Masters, params: Any = None) -> Any:
        wide = jax.tree.map(lambda grad: rate * grad.astype(jnp.float32), updates)
        master = jax.tree.map(jnp.subtract, state.master, wide)
        steps = jax.tree.map(lambda m, p: m - p.astype(jnp.float32), master, params)
        average = jax.tree.map(lambda a, p: (a + p) / 2, state.average, params)
        return steps, Masters(master, average, state.count + 1)

    return optax.GradientTransformation(init, update)


contrib = optax.contrib
# The copies that each optimizer holds, as they are named in its state.
HOLD = {
    "schedule_free_adamw": (contrib.schedule_free_adamw(0.1), {".z"}),
    "schedule_free_sgd": (contrib.schedule_free_sgd(0.1), {".z"}),
    "prodigy": (contrib.prodigy(0.1), {".params0"}),
    "dog": (contrib.dog(0.1), {"[1].init_params"}),
    "dowg": (contrib.dowg(0.1), {"[1].init_params"}),
    "cocob": (contrib.cocob(), {"[2].init_particles"}),
    "madgrad": (contrib.madgrad(0.1), {"[1].x0"}),
    "mechanize": (contrib.mechanize(optax.sgd(0.1)), {".x0"}),
    "sam": (contrib.sam(optax.sgd(0.1), optax.sgd(0.1), opaque_mode=False), {".cache"}),
    "masters": (float32_masters(0.1), {".master", ".average"}),
    "chained": (
        optax.chain(optax.clip(1.0), optax.apply_if_finite(contrib.schedule_free_sgd(0.1), 3)),
        {"[1].inner_state.z"},
    ),
    "sgd": (optax.sgd(0.1, momentum=0.9), set()),
    "adamw": (optax.adamw(0.1), set()),
    "adagrad": (optax.adagrad(0.1), set()),
    "lion": (optax.lion(0.1), set()),
    "lamb": (optax.lamb(0.1), set()),
    "adafactor": (optax.adafactor(0.1), set()),
    "muon": (contrib.muon(0.1), set()),
    "sm3": (optax.sm3(0.1), set()),
    "lbfgs": (optax.lbfgs(0.1, linesearch=None), set()),
}
holds = pytest.mark.parametrize("name", HOLD)


@pytest.mark.standard_promotion
@holds
def test_the_copies_of_an_optimizer_are_found(name: str):
    tx, copies = HOLD[name]
    expected = {f"{copy}[{path!r}]": path for copy in copies for path in PARAMS}
    assert copied_leaves(tx, PARAMS) == expected


@pytest.mark.standard_promotion
@pytest.mark.parametrize("name", [name for name, (_, copies) in HOLD.items() if copies])
def test_copies_are_zero_where_pruned_and_untouched_elsewhere(name: str):
    inner, copies = HOLD[name]
    update = jax.jit(optax.with_extra_args_support(inner).update)  # one program for both
    inner = optax.GradientTransformation(inner.init, update)
    tx = jaxprune.static(inner, {"kernel": MASK}, mask_gradients=False)
    params, state = PARAMS, tx.init(PARAMS)
    grads = jax.tree.map(lambda leaf: 0.01 * leaf, PARAMS)
    for _ in range(2):
        _, bare = update(grads, state.inner_state, params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        found, expected = _leaves(state.inner_state), _leaves(bare)
        for copy in copies:
            kernel = f"{copy}['kernel']"
            assert (found[kernel][~MASK] == 0.0).all()
            np.testing.assert_array_equal(found[kernel][MASK], expected[kernel][MASK])
            assert (found[kernel][MASK] != 0.0).all()
        others = found.keys() - {f"{copy}['kernel']" for copy in copies}
        assert others
        for other in others:
            np.testing.assert_array_equal(found[other], expected[other])


@pytest.mark.standard_promotion
def test_parameters_that_are_one_array_have_no_other_copies():
    """Their path is empty, as is the name of what is no copy."""
    params = PARAMS["kernel"]
    inner = optax.contrib.mechanize(optax.sgd(0.1, momentum=0.9))
    tx = jaxprune.static(inner, MASK, mask_gradients=False)
    state = tx.init(params)
    _, bare = optax.with_extra_args_support(inner).update(params, state.inner_state, params)
    _, state = tx.update(params, state, params)
    found, expected = _leaves(state.inner_state), _leaves(bare)
    assert (found[".x0"] == np.where(MASK, expected[".x0"], 0.0)).all()
    momentum = ".base_optimizer_state[0].trace"
    assert (expected[momentum][~MASK] != 0.0).all()
    for other in found.keys() - {".x0"}:
        np.testing.assert_array_equal(found[other], expected[other])


def _leaves(state: Any) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


@pytest.mark.standard_promotion
def test_what_schedule_free_evaluates_is_pruned_too():
    inner = optax.contrib.schedule_free_adamw(0.1)
    tx = jaxprune.gradual(inner, 0.5)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(3):
        updates, state = tx.update(PARAMS, state, params)
        params = optax.apply_updates(params, updates)
    averaged = optax.contrib.schedule_free_eval_params(state.inner_state, params)
    assert ((averaged["kernel"] == 0.0) == ~MASK).all()


def test_masters_of_bfloat16_parameters_do_not_bring_weights_back():
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    tx = jaxprune.gradual(float32_masters(1e-3), 0.5)
    params, state = narrow, tx.init(narrow)
    for _ in range(3):
        updates, state = tx.update(narrow, state, params)
        params = third_party.leniently(optax.apply_updates)(params, updates)
    assert ((params["kernel"] == 0) == ~MASK).all()
    assert ((state.inner_state.master["kernel"] == 0) == ~MASK).all()
    assert params["kernel"].dtype == jnp.bfloat16
    assert jaxprune.check(params, state).ok
