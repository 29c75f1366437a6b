"""Training with fixed masks: what is its own, beside the laws of all transforms."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune._core.packing import pack

MASK = np.array([[True, False], [False, True]])


def parameters() -> dict[str, Any]:
    return {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "bias": jnp.ones(2)}


def train(tx: Any, params: Any, grads: Any, calls: int = 1) -> tuple[Any, Any]:
    state = tx.init(params)
    for _ in range(calls):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize(
    "masks",
    [
        {"kernel": MASK},
        {"kernel": jnp.asarray(MASK), "bias": optax.MaskedNode()},
        {"kernel": pack(jnp.asarray(MASK)), "bias": None},
    ],
    ids=["numpy", "jax", "packed"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_dense_parameters_are_pruned_by_the_first_call(masks: Any, packed: bool):
    tx = jaxprune.static(optax.sgd(0.5), masks, packed=packed)
    params, state = train(tx, parameters(), parameters())
    assert params["kernel"].tolist() == [[0.5, 0.0], [0.0, 2.0]]
    assert params["bias"].tolist() == [0.5, 0.5]
    assert jaxprune.get_masks(state)["kernel"].tolist() == MASK.tolist()


def test_the_masks_of_prune_fit():
    params, masks = jaxprune.prune(parameters(), 0.5)
    tx = jaxprune.static(optax.sgd(0.25, momentum=0.5), masks)
    params, _ = train(tx, params, parameters(), calls=3)
    assert ((params["kernel"] != 0) == masks["kernel"]).all()


def test_a_mask_may_stand_on_any_leaf():
    tx = jaxprune.static(optax.sgd(0.5), {"bias": np.array([False, True])})
    params, _ = train(tx, parameters(), parameters())
    assert params["bias"].tolist() == [0.0, 0.5]
    assert params["kernel"].tolist() == [[0.5, 1.0], [1.5, 2.0]]


def test_the_optimizer_sees_the_pruned_model_unless_told_otherwise():
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    grads = {"kernel": jnp.array([[3.0, 100.0], [100.0, 4.0]]), "bias": jnp.zeros(2)}
    params, _ = train(jaxprune.static(inner, {"kernel": MASK}), parameters(), grads)
    assert params["kernel"][0, 0] == pytest.approx(1.0 - 3.0 / 5.0)
    tx = jaxprune.static(inner, {"kernel": MASK}, mask_gradients=False)
    params, _ = train(tx, parameters(), grads)
    assert params["kernel"][0, 0] == pytest.approx(1.0 - 3.0 / np.sqrt(20025.0))


def test_optax_can_map_over_the_state():
    tx = jaxprune.static(optax.sgd(0.1, momentum=0.9), {"kernel": MASK})
    mapped: Any = optax.tree_map_params(tx, jnp.ones_like, tx.init(parameters()))
    assert mapped.inner_state[0].trace["kernel"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_schedule_has_no_end_to_be_reached():
    tx = jaxprune.static(optax.sgd(0.1), {"kernel": MASK})
    params, state = train(tx, parameters(), parameters())
    assert jaxprune.check(params, state).ok
    assert state.method.reached is None
