"""Sparse networks from scratch as TimDettmers/sparse_learning trains them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from jaxprune.transforms import cosine_drop
from tests.oracles import exact
from tests.oracles.pause import pausable

Recorded = Callable[[str], Any]


def weights_of(data: Any, prefix: str) -> dict[str, jax.Array]:
    return {name: jnp.asarray(array) for name, array in data.under(prefix).items()}


def test_training_run(recorded: Recorded) -> None:
    data = recorded("snfs")
    settings = data.settings
    every, decay = settings["every"], settings["momentum"]
    steps = sorted({int(m[1]) for m in data.matches(r"grad(\d+)/.+")})
    first = {name: array != 0 for name, array in data.under("mask00").items()}
    live = {name: int(mask.sum()) for name, mask in first.items()}
    published = cosine_drop(settings["prune_rate"], settings["cosine_T"], floor=settings["eta_min"])
    # Every update is a call of its own, in which the optimizer pauses.
    tx = jaxprune.snfs(
        pausable(optax.sgd(settings["lr"], momentum=decay)),
        1.0 - settings["density"],
        begin=every,
        every=every + 1,
        end=2 * len(steps),
        drop=lambda call: published(call - call // (every + 1)),
        decay=decay,
        allocation=exact.counts(live),
        where=lambda path, leaf: path in live,
    )
    params = weights_of(data, "w00")
    opt_state = tx.init(params)
    masks = {name: jnp.asarray(mask) for name, mask in first.items()}
    others = {name: optax.MaskedNode() for name in params if name not in masks}
    opt_state = opt_state._replace(masks=masks | others)
    for step in steps:
        grads = weights_of(data, f"grad{step:02d}")
        updates, opt_state = tx.update(grads, opt_state, params, pause=False)
        params = optax.apply_updates(params, updates)
        if step % every:
            continue
        np.testing.assert_allclose(published(step), data[f"prune_rate{step:02d}"], rtol=1e-12)
        momentum = {name: opt_state.extra.momentum.tree[name] for name in live}
        for name in live:
            np.testing.assert_allclose(momentum[name], data[f"mom{step:02d}/{name}"], rtol=1e-5)
        # These gradients leave the momentum as it is.
        still = jax.tree.map(jnp.zeros_like, params)
        still |= {name: jnp.float32(1.0 - decay) * leaf for name, leaf in momentum.items()}
        updates, opt_state = tx.update(still, opt_state, params, pause=True)
        params = optax.apply_updates(params, updates)
        for name in live:
            found = jaxprune.get_masks(opt_state)[name]
            np.testing.assert_array_equal(found, data[f"mask{step:02d}/{name}"] != 0)
        for name, weight in params.items():
            np.testing.assert_allclose(
                weight, data[f"w{step:02d}/{name}"], rtol=1e-5, atol=1e-6, err_msg=name
            )
        correction = opt_state.extra.correction
        np.testing.assert_allclose(correction, data[f"adjusted_growth{step:02d}"], rtol=1e-6)
