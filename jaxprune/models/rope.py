"""Rotary positions: each pair of a head's coordinates turns with the position."""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np


class RopeScaling(Protocol):
    """How the frequencies of a model are changed for contexts longer than it was trained on."""

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """Return the changed frequencies, of shape (head_dim / 2,), in radians per token."""
        ...


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Divide every frequency by ``factor``.

    Attributes:
      factor: how many times longer the context becomes.
    """

    factor: float

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """Return the frequencies divided by the factor."""
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Divide the low frequencies only, as Llama 3.1 does.

    With ``turns = context · f / 2π``, the turns that a frequency f makes in the original context,
    those below ``low`` are divided by ``factor``, those above ``high`` stay, and between the two
    the result is interpolated linearly in ``turns``.

    Attributes:
      factor: how many times longer the context becomes.
      low: turns below which a frequency is divided; Hugging Face's ``low_freq_factor``.
      high: turns above which a frequency stays; Hugging Face's ``high_freq_factor``.
      context: tokens of the original context; ``original_max_position_embeddings``.
    """

    factor: float
    low: float
    high: float
    context: int

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """Return the frequencies, the low ones divided."""
        turns = self.context * frequencies / (2 * math.pi)
        share = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return (1 - share) * frequencies / self.factor + share * frequencies


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Return ``theta^(-2i / head_dim)`` for each pair i, scaled, as float32."""
    plain = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    return (plain if scaling is None else scaling(plain)).astype(np.float32)


def turn_by(positions: jax.Array, per_token: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Return cosine and sine of each position's angles, float32 (length, head_dim / 2)."""
    angles = positions.astype(jnp.float32)[:, None] * jnp.asarray(per_token)[None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn the pairs ``(x_i, x_{i + head_dim / 2})`` of x, (batch, length, heads, head_dim).

    Pairs are halves of the head, as Hugging Face lays them out. It is done in float32.
    """
    cos, sin = cos[None, :, None], sin[None, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
