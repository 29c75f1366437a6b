"""SR-STE as aojunzz/NM-sparsity computes it: forward weights, masks, gradients, a training run."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from tests.third_party import inner

Recorded = Callable[[str], Any]
BIG_DECAY, DECAY = 0.1, 2e-4


def to_flax(weight: np.ndarray) -> jax.Array:
    """Turn [out, in] into [in, out], and OIHW into HWIO."""
    return jnp.asarray(weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0))


def test_forward_mask_and_gradient(recorded: Recorded) -> None:
    data = recorded("srste")
    for match in data.matches(r"((?:fc|conv)_(\d+)_(\d+)(_bigdecay)?)/w"):
        case, n, m = match[1], int(match[2]), int(match[3])
        decay = BIG_DECAY if match[4] else DECAY
        tx = jaxprune.sr_ste(optax.sgd(1.0), jaxprune.NM(n, m), decay=decay)
        params: Any = {"kernel": to_flax(data[f"{case}/w"])}
        upstream = {"kernel": to_flax(data[f"{case}/upstream"])}
        opt_state = tx.init(params)

        seen, pull = jax.vjp(lambda p, s=opt_state: jaxprune.forward_params(p, s), params)
        np.testing.assert_array_equal(seen["kernel"], to_flax(data[f"{case}/w_sparse"]))
        (grads,) = pull(upstream)
        step: Any = tx.update(grads, opt_state, params)
        updates, opt_state = step
        mask = jaxprune.get_masks(opt_state)["kernel"]
        np.testing.assert_array_equal(mask, to_flax(data[f"{case}/mask"]) != 0)
        # Plain SGD with rate 1 returns the gradient that the dense weight receives, negated.
        np.testing.assert_allclose(
            -updates["kernel"], to_flax(data[f"{case}/grad_w"]), rtol=1e-6, atol=1e-6
        )


def test_training_run(recorded: Recorded) -> None:
    data = recorded("srste")
    steps = sorted(int(m[1]) for m in data.matches(r"traj/x(\d+)"))
    params: Any = {
        "kernel": jnp.asarray(data["traj/w0"].T),
        "bias": jnp.asarray(data["traj/b0"]),
    }
    tx = jaxprune.sr_ste(inner(optax.sgd(0.5, momentum=0.9)), jaxprune.NM(2, 4))
    opt_state = tx.init(params)

    def loss_fn(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean((x @ p["kernel"] + p["bias"][None, :] - y) ** 2)

    differentiate = jaxprune.value_and_grad(loss_fn)
    for step in steps:
        x, y = jnp.asarray(data[f"traj/x{step}"]), jnp.asarray(data[f"traj/y{step}"])
        loss, grads = differentiate(params, opt_state, x, y)
        np.testing.assert_allclose(loss, data[f"traj/loss{step}"], rtol=1e-5)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["kernel"].T, data[f"traj/w{step}"], rtol=1e-5, atol=1e-6)


def test_the_pattern_is_read_from_the_name() -> None:
    assert re.fullmatch(r"((?:fc|conv)_(\d+)_(\d+)(_bigdecay)?)/w", "fc_2_4_bigdecay/w")
