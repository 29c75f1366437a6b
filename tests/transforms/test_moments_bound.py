"""The steps of grown weights are as large as those of weights that were always live.

All weights get gradients of one distribution, so that only the moments can make a difference. The
masks change once, through the transform; before and after, its inner optimizer runs by itself.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxprune
from jaxprune.transforms import moments
from tests.third_party import inner

STEPS = 300
SHAPE = (32, 64)
OPTIMIZERS = {
    "adam": optax.adam(1e-3),
    "rmsprop": optax.rmsprop(1e-3),
    "lamb": optax.lamb(1e-3),
    "adafactor": optax.adafactor(1e-3),  # factored from 128 on
    "amsgrad": optax.amsgrad(1e-3),
}


def ratios(optimizer: Any, rule: moments.Moments) -> jax.Array:
    """The root mean square of grown weights' steps over that of old ones', at each step after."""
    bare = inner(optimizer)
    params = {"kernel": jax.random.normal(jax.random.key(0), SHAPE)}
    tx = jaxprune.dynamic(
        bare,
        0.5,
        begin=0,
        every=1,
        end=1,
        drop=0.5,
        growth=jaxprune.growth.random,
        regrow=False,
        moments=rule,
    )

    @jax.jit
    def run(state: Any, mask: jax.Array, groups: jax.Array, seed: jax.Array) -> Any:
        def step(state: Any, key: jax.Array) -> Any:
            drawn = jax.random.normal(key, SHAPE)
            updates, state = bare.update({"kernel": jnp.where(mask, drawn, 0.0)}, state, params)
            squares = jnp.where(groups, updates["kernel"][None] ** 2, 0.0)
            return state, jnp.sqrt(squares.sum((1, 2)) / groups.sum((1, 2)).astype(jnp.float32))

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(seed), STEPS))

    opt_state = tx.init(params)
    before = jaxprune.get_masks(opt_state)["kernel"]
    held, _ = run(opt_state.inner_state, before, jnp.stack([before, before]), 1)
    grads = {"kernel": jax.random.normal(jax.random.key(2), SHAPE)}
    _, opt_state = tx.update(grads, opt_state._replace(inner_state=held), params)
    after = jaxprune.get_masks(opt_state)["kernel"]
    groups = jnp.stack([after & ~before, after & before])
    assert (groups.sum((1, 2)) == 512).all()
    _, sizes = run(opt_state.inner_state, after, groups, 3)
    return sizes[:, 0] / sizes[:, 1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_mean_of_live_moments_bounds_the_steps_of_grown_weights(name: str) -> None:
    assert float(ratios(OPTIMIZERS[name], moments.mean_of_live).max()) < 2.0


def test_fresh_moments_do_not() -> None:
    assert float(ratios(OPTIMIZERS["adam"], moments.fresh).max()) > 4.0
