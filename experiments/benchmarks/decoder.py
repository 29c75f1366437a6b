"""A plain decoder of about ten million parameters, to have a training step to compare with."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Size:
    """The shape of the model."""

    vocabulary: int = 256
    width: int = 640
    heads: int = 10
    layers: int = 2


class Block(nn.Module):
    """Attention and a feed-forward pair, each on a normalised residual."""

    size: Size

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        causal = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        attend = nn.MultiHeadDotProductAttention(num_heads=self.size.heads)
        x = x + attend(nn.LayerNorm()(x), mask=causal)
        hidden = nn.gelu(nn.Dense(4 * self.size.width)(nn.LayerNorm()(x)))
        return x + nn.Dense(self.size.width)(hidden)


class Decoder(nn.Module):
    """Tokens (batch, length) to logits (batch, length, vocabulary)."""

    size: Size

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(self.size.vocabulary, self.size.width)(tokens)
        length = tokens.shape[1]
        place = self.param("place", nn.initializers.normal(0.02), (length, self.size.width))
        x = x + place[None]
        for _ in range(self.size.layers):
            x = Block(self.size)(x)
        return nn.Dense(self.size.vocabulary, use_bias=False)(nn.LayerNorm()(x))


def loss(model: Decoder, params: Any, tokens: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of each next token."""
    logits = jnp.asarray(model.apply(params, tokens[:, :-1]))
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()
