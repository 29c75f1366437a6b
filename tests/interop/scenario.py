"""One training, whatever the framework: which half of the vocabulary most tokens come from."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxprune
from tests.third_party import inner

VOCABULARY, LENGTH, WIDTH, HEADS, CLASSES = 16, 6, 8, 2, 2
DENSITY = 0.2
BEGIN, END, STEPS = 4, 16, 24

Batch = tuple[jax.Array, jax.Array]
"""Tokens (64, LENGTH) int32, and their class (64,) int32."""


def transform(*, packed: bool = False) -> optax.GradientTransformationExtraArgs:
    """The one line."""
    schedule = jaxprune.schedules.cubic(0.0, 1 - DENSITY, begin=BEGIN, end=END)
    return jaxprune.gradual(inner(optax.adamw(2e-2)), schedule, every=5, packed=packed)


def batch() -> Batch:
    """Return the one batch that all frameworks train on."""
    tokens = jax.random.randint(jax.random.key(1), (64, LENGTH), 0, VOCABULARY)
    most = jnp.sum(tokens >= VOCABULARY // 2, axis=1) > LENGTH // 2
    return tokens, most.astype(jnp.int32)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean loss, in plain jax: every framework has the same."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -jnp.mean(chosen)


def to_host(leaf: Any) -> Any:
    """Return what pickle can hold of a leaf."""
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    return jax.device_get(leaf)


def from_host(leaf: Any, stored: Any) -> Any:
    """Return a stored leaf as the kind of leaf that it was."""
    stored = jnp.asarray(stored)
    return jax.random.wrap_key_data(stored) if _is_key(leaf) else stored


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
