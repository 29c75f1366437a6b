"""PERP as its authors' code computes it: masks, adapters, their gradients, and merging."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import posttraining, recovery

Recorded = Callable[[str], Any]
CLOSE: Any = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture
def data(recorded: Recorded) -> Any:
    return recorded("perp")


def model(data: Any) -> tuple[Any, Any]:
    """The pruned layer in Flax's layout, and its mask."""
    params = {"kernel": jnp.asarray(data["w_sparse"].T), "bias": jnp.asarray(data["bias"])}
    return params, {"kernel": params["kernel"] != 0}


def adapters_of(data: Any, make: Any, **options: Any) -> Any:
    """Adapters of the recorded size: as they start, and with the recorded factors."""
    rank, alpha = data.settings["r"], data.settings["alpha"]
    options |= {} if make is recovery.scale_lora else {"alpha": alpha, "key": jax.random.key(1)}
    start = make(*model(data), rank=rank, **options)
    kind = type(start["kernel"])
    a, b = jnp.asarray(data["A"].T), jnp.asarray(data["B"].T)
    return start, {"kernel": kind(a, b, start["kernel"].scale, start["kernel"].layout)}


def test_masks(data: Any) -> None:
    weight = jnp.asarray(data["w_dense"].T)
    inputs = posttraining.Inputs(jnp.float32(1), jnp.float32(1))
    method = posttraining.magnitude(select=posttraining.below_threshold)
    for match in data.matches(r"prune_mask_(0\.\d+|(\d)_(\d))"):
        if match[2]:
            pruned, size = int(match[2]), int(match[3])
            target = posttraining.Target(pruned / size, jaxprune.NM(size - pruned, size))
        else:
            target = posttraining.Target(float(match[1]))
        mask = np.asarray(method(weight, inputs, target).mask)
        np.testing.assert_array_equal(mask, data[match[0]].T == 0, err_msg=match[0])


@pytest.mark.parametrize("make", [recovery.mask_lora, recovery.lora_prune])
def test_low_rank_changes(data: Any, make: Any) -> None:
    params, masks = model(data)
    start, adapters = adapters_of(data, make)
    want = data.under(make.__name__)
    # What LoRA starts from is not the reference's own: it leaves the factors that it is given.
    np.testing.assert_array_equal(want["A_init"], data["A"])
    np.testing.assert_array_equal(want["B_init"], data["B"])
    np.testing.assert_array_equal(start["kernel"].b, jnp.zeros_like(adapters["kernel"].b))
    x, upstream = jnp.asarray(data["x"]), jnp.asarray(data["upstream"])
    trained = adapters | recovery.full(params, where=recovery.is_bias)

    def outputs(trained: Any) -> jax.Array:
        seen = recovery.effective_params(params, masks, trained)
        return x @ seen["kernel"] + seen["bias"][None]

    y, pull = jax.vjp(outputs, trained)
    np.testing.assert_allclose(y, want["y"], **CLOSE)
    (slope,) = pull(upstream)
    np.testing.assert_allclose(slope["kernel"].a, want["gradA"].T, **CLOSE)
    np.testing.assert_allclose(slope["kernel"].b, want["gradB"].T, **CLOSE)
    np.testing.assert_allclose(slope["bias"].value, want["grad_bias"], **CLOSE)
    merged = recovery.merge(params, masks, trained)
    np.testing.assert_allclose(merged["kernel"], want["merged"].T, **CLOSE)


def test_low_rank_factors(data: Any) -> None:
    start, adapters = adapters_of(data, recovery.scale_lora)
    want = data.under("scale_lora")
    np.testing.assert_allclose(start["kernel"].a, want["A_init"].T, **CLOSE)
    np.testing.assert_allclose(start["kernel"].b, want["B_init"].T, **CLOSE)
    merged = recovery.merge(*model(data), adapters)
    np.testing.assert_allclose(merged["kernel"], want["merged"].T, **CLOSE)
