"""A small vision transformer and a small decoder of characters, out of the same blocks.

Products of matrices are in bfloat16; parameters, the residual stream, normalisation and the loss
are in float32.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

BLOCKS = r"Block_\d+/\w+/kernel$"
"""The paths of what is pruned: the kernels of the blocks, not those of embeddings and head."""

_Product = functools.partial(nn.Dense, dtype=jnp.bfloat16)


def attention(query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool) -> jax.Array:
    """Return the mixed values [N, T, heads, features] of three such arrays."""
    length, features = query.shape[1], query.shape[3]
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores / np.float32(np.sqrt(features))
    if causal:
        seen = np.tri(length, dtype=bool)[None, None]
        scores = jnp.where(seen, scores, np.float32(-1e9))
    shares = jax.nn.softmax(scores).astype(value.dtype)
    return jnp.einsum("nhqk,nkhd->nqhd", shares, value)


class Block(nn.Module):
    """Attention and a feed-forward pair, each on a normalised residual."""

    heads: int
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return [N, T, width] float32 of the same."""
        length, width = x.shape[1:]
        qkv = _Product(3 * width, name="qkv")(nn.LayerNorm()(x))
        parts = qkv.reshape(-1, length, 3, self.heads, width // self.heads)
        mixed = attention(*(parts[:, :, i] for i in range(3)), causal=self.causal)
        x = x + _Product(width, name="out")(mixed.reshape(x.shape)).astype(jnp.float32)
        hidden = nn.gelu(_Product(4 * width, name="up")(nn.LayerNorm()(x)))
        return x + _Product(width, name="down")(hidden).astype(jnp.float32)


class Transformer(nn.Module):
    """Blocks on vectors with learned positions."""

    width: int
    depth: int
    heads: int
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return [N, T, width] float32 of vectors [N, T, features]."""
        x = _Product(self.width, name="embed")(x).astype(jnp.float32)
        place = self.param("place", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = x + place
        for index in range(self.depth):
            x = Block(self.heads, self.causal, name=f"Block_{index}")(x)
        return nn.LayerNorm(name="norm")(x)


class VisionTransformer(nn.Module):
    """A transformer on patches of 4 x 4 pixels, whose outputs are averaged."""

    num_classes: int
    width: int
    depth: int
    heads: int
    mean: float  # of the training pixels
    std: float

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return logits [N, classes] of images [N, H, W, 1] uint8."""
        x = (images.astype(jnp.float32) - np.float32(self.mean)) / np.float32(self.std)
        x = Transformer(self.width, self.depth, self.heads, causal=False)(patches(x))
        return nn.Dense(self.num_classes, name="head")(jnp.mean(x, axis=1))


class Decoder(nn.Module):
    """A decoder that gives the next character."""

    vocabulary: int
    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return logits [N, T, vocabulary] of tokens [N, T]."""
        # A product, because the gradient of a gather adds up thousands of rows in few places.
        x = jax.nn.one_hot(tokens, self.vocabulary, dtype=jnp.bfloat16)
        x = Transformer(self.width, self.depth, self.heads, causal=True)(x)
        return nn.Dense(self.vocabulary, name="head")(x)


def patches(images: jax.Array, size: int = 4) -> jax.Array:
    """Return [N, patches, size²] of [N, H, W, 1], both sides multiples of the size."""
    n, height, width, _ = images.shape
    rows, columns = height // size, width // size
    x = images.reshape(n, rows, size, columns, size).transpose(0, 1, 3, 2, 4)
    return x.reshape(n, rows * columns, size * size)
