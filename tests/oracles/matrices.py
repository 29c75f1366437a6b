"""Read a recording of one matrix into what the methods take."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from jaxprune import posttraining


def read(
    weight: np.ndarray, batches: np.ndarray, gradient: np.ndarray | None = None
) -> tuple[jax.Array, posttraining.Inputs]:
    """Turn a weight [out, in], and inputs [batches, sequences, tokens, in], into ours."""
    inputs = posttraining.Inputs(
        sequences=jnp.float32(batches.shape[0] * batches.shape[1]),
        tokens=jnp.float32(batches.size // batches.shape[-1]),
        squares=jnp.sum(jnp.square(jnp.asarray(batches)), axis=(0, 1, 2)),
        gradient=None if gradient is None else jnp.asarray(gradient.T),
    )
    return jnp.asarray(weight.T), inputs


def target(kind: str, digits: str) -> posttraining.Target:
    """Read `nm24`, where 2 of 4 are pruned, or a percentage; `variant60` and `unstr50` alike."""
    if kind == "nm":
        pruned, size = int(digits[0]), int(digits[1:])
        pattern = jaxprune.NM(size - pruned, size)
        return posttraining.Target(pruned / size, pattern)
    return posttraining.Target(int(digits) / 100)
