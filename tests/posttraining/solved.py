"""Matrices with correlated inputs, and how far a solver's outputs are from the dense ones."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from jaxprune import posttraining

HALF = posttraining.Target(0.5)
TWO_OF_FOUR = posttraining.Target(0.5, jaxprune.NM(2, 4))


def correlated(
    seed: int = 0, shape: tuple[int, int] = (48, 6)
) -> tuple[jax.Array, posttraining.Inputs]:
    """A weight, and the Gram matrix of inputs that can stand in for one another."""
    rng = np.random.default_rng(seed)
    features = shape[0]
    x = rng.normal(size=(8 * features, features // 2)) @ rng.normal(size=(features // 2, features))
    x = (x + 0.5 * rng.normal(size=x.shape)).astype(np.float32)
    inputs = posttraining.Inputs(jnp.float32(4), jnp.float32(len(x)), gram=jnp.asarray(x.T @ x))
    return jnp.asarray(rng.normal(size=shape).astype(np.float32)), inputs


@functools.cache
def compiled(method: Any) -> Any:
    """The method under jit, with the target static; one program for each shape and target."""
    return jax.jit(method, static_argnums=2)


def error(weight: Any, pruned: Any, gram: Any) -> float:
    """The squared error of the outputs, relative to the outputs' own square."""
    dense, gram = np.asarray(weight, np.float64), np.asarray(gram, np.float64)
    change = dense - np.asarray(pruned, np.float64)
    return float(np.sum((gram @ change) * change) / np.sum((gram @ dense) * dense))
