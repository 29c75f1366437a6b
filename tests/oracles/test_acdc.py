"""A compression of AC/DC as IST-DASLab/ACDC computes it: one ranking over all layers."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune

Recorded = Callable[[str], Any]


def compressed(weights: Any, masks: Any, sparsity: float) -> dict[str, np.ndarray]:
    """Return the masks after one compression of weights that have masks."""
    tx = jaxprune.acdc(optax.sgd(0.0), sparsity, begin=0, every=2, end=4, where=".*")
    state: Any = tx.init(weights)
    _, state = tx.update(weights, state._replace(masks=masks), weights)
    return jax.device_get(jaxprune.get_masks(state))


def test_masks_of_a_compression(recorded: Recorded) -> None:
    data = recorded("acdc")
    layers = [match[1] for match in data.matches(r"w(\d+)")]
    weights = {layer: jnp.asarray(data[f"w{layer}"]) for layer in layers}
    masks = {layer: jnp.asarray(data[f"mask_in{layer}"] != 0) for layer in layers}
    total = sum(weight.size for weight in weights.values())
    for match in data.matches(r"threshold_([\d.]+)"):
        want = {layer: data[f"mask_{match[1]}_{layer}"] != 0 for layer in layers}
        # The reference keeps what exceeds the k-th largest, k = ceil(n (1 - s)): one less than k.
        # Ours keeps round(n (1 - s)): the test hands over the count.
        kept = sum(int(mask.sum()) for mask in want.values())
        assert kept == math.ceil(total * (1 - float(match[1]))) - 1
        found = compressed(weights, masks, 1 - kept / total)
        for layer in layers:
            np.testing.assert_array_equal(found[layer], want[layer], err_msg=match[0])
