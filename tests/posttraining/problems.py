"""Small matrices with calibration sums."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import posttraining


def problem(
    seed: int = 0, shape: tuple[int, int] = (16, 6), *, sequences: int = 2
) -> tuple[jax.Array, posttraining.Inputs]:
    """A weight, and the sums over its inputs, of which some features are much larger."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=shape).astype(np.float32)
    loud = rng.uniform(0.1, 3.0, size=shape[0])
    x = (rng.normal(size=(sequences * 10, shape[0])) * loud).astype(np.float32)
    gradient = np.abs(rng.normal(size=shape)).astype(np.float32)
    inputs = posttraining.Inputs(
        sequences=jnp.float32(sequences),
        tokens=jnp.float32(len(x)),
        squares=jnp.asarray((x**2).sum(0)),
        gram=jnp.asarray(x.T @ x),
        gradient=jnp.asarray(gradient),
    )
    return jnp.asarray(weight), inputs
