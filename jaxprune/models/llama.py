"""A decoder of the Llama family in Flax Linen, and the plain function of it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.models.config import LlamaConfig
from jaxprune.models.rope import frequencies, rotate, turn_by
from jaxprune.types import Tree

_INIT = nn.initializers.normal(0.02)

Pair = tuple[jax.Array, jax.Array]


class Cache(NamedTuple):
    """The keys and values of the tokens seen so far.

    Attributes:
      layers: keys, turned by their positions, and values, both (batch, capacity,
        num_key_value_heads, head_dim): a pair for every block, or one pair with a leading layer
        axis where the parameters are stacked.
      used: int32 scalar, how many places are filled.
    """

    layers: Pair | tuple[Pair, ...]
    used: jax.Array

    @property
    def capacity(self) -> int:
        """Number of places."""
        return jax.tree.leaves(self.layers)[0].shape[-3]


class _Places(NamedTuple):
    """What the blocks have to know of the tokens' places; the same for all of them."""

    cos: jax.Array  # float32 (length, head_dim / 2)
    sin: jax.Array  # as cos
    visible: jax.Array  # bool (length, keys): may a token attend to a key?
    start: jax.Array | None  # int32 scalar: place of the first token; None without a cache


class RMSNorm(nn.Module):
    """Divide by the root of the mean square, in float32, and scale."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x, (..., width), normalised along its last axis."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + scale.shape)
        return (wide * scale).astype(x.dtype)


class Attention(nn.Module):
    """Causal attention in which several query heads share a key and value head."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, places: _Places, cached: Pair | None
    ) -> tuple[jax.Array, Pair | None]:
        """Return what each token reads, (batch, length, hidden_size), and the cache's layer."""
        c = self.config
        batch, length, _ = x.shape
        groups = c.num_attention_heads // c.num_key_value_heads
        query = rotate(self._heads(x, "q_proj", c.num_attention_heads), places.cos, places.sin)
        key = rotate(self._heads(x, "k_proj", c.num_key_value_heads), places.cos, places.sin)
        value = self._heads(x, "v_proj", c.num_key_value_heads)
        if cached is not None:
            assert places.start is not None
            at = (0, places.start, 0, 0)
            key = jax.lax.dynamic_update_slice(cached[0], key, at)
            value = jax.lax.dynamic_update_slice(cached[1], value, at)
            cached = (key, value)
        query = query.reshape(batch, length, c.num_key_value_heads, groups, c.head_dim)
        scores = jnp.einsum("btkgd,bskd->bkgts", query, key).astype(jnp.float32)
        seen = places.visible[None, None, None]
        scores = jnp.where(seen, scores * c.head_dim**-0.5, jnp.finfo(jnp.float32).min)
        share = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        read = jnp.einsum("bkgts,bskd->btkgd", share, value).reshape(batch, length, -1)
        out = nn.Dense(c.hidden_size, use_bias=c.attention_bias, kernel_init=_INIT, name="o_proj")
        return out(read), cached

    def _heads(self, x: jax.Array, name: str, count: int) -> jax.Array:
        c = self.config
        dense = nn.Dense(count * c.head_dim, use_bias=c.qkv_bias, kernel_init=_INIT, name=name)
        return dense(x).reshape(*x.shape[:2], count, c.head_dim)


class MLP(nn.Module):
    """The gated feed-forward layer ``down(silu(gate(x)) * up(x))``."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return a tensor of x's shape, (batch, length, hidden_size)."""
        c = self.config
        dense = functools.partial(nn.Dense, use_bias=c.mlp_bias, kernel_init=_INIT)
        gate = dense(c.intermediate_size, name="gate_proj")(x)
        up = dense(c.intermediate_size, name="up_proj")(x)
        return dense(c.hidden_size, name="down_proj")(nn.silu(gate) * up)


class Block(nn.Module):
    """Attention and the feed-forward layer, each added to the residual stream."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, places: _Places, cached: Pair | None
    ) -> tuple[jax.Array, Pair | None]:
        """Return the residual stream, (batch, length, hidden_size), and the cache's layer."""
        norm = functools.partial(RMSNorm, self.config.rms_norm_eps)
        attention = Attention(self.config, name="self_attn")
        read, cached = attention(norm(name="input_layernorm")(x), places, cached)
        x = x + read
        return x + MLP(self.config, name="mlp")(norm(name="post_attention_layernorm")(x)), cached


class Llama(nn.Module):
    """The whole decoder; parameters are named as in Hugging Face checkpoints.

    Attributes:
      config: its shape.
      stacked: whether the blocks' parameters lie in one tree ``layers``, each leaf with a leading
        layer axis that is scanned, or in trees ``layers_0``, ``layers_1`` ...
    """

    config: LlamaConfig
    stacked: bool = False

    @nn.compact
    def __call__(
        self, tokens: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Return the logits, float32 (batch, length, vocab_size), and the longer cache.

        Args:
          tokens: integers (batch, length).
          cache: of the tokens before these, with room for them; None for none.
        """
        c = self.config
        embed = nn.Embed(c.vocab_size, c.hidden_size, embedding_init=_INIT, name="embed_tokens")
        layers = None if cache is None else cache.layers
        x, layers = self._blocks(embed(tokens), _places(c, tokens.shape[1], cache), layers)
        x = RMSNorm(c.rms_norm_eps, name="norm")(x)
        if c.tie_word_embeddings:
            logits = embed.attend(x)
        else:
            logits = nn.Dense(c.vocab_size, use_bias=False, kernel_init=_INIT, name="lm_head")(x)
        if cache is not None:
            cache = Cache(layers, cache.used + tokens.shape[1])
        return logits.astype(jnp.float32), cache

    def _blocks(self, x: jax.Array, places: _Places, layers: Any) -> tuple[jax.Array, Any]:
        c = self.config
        if self.stacked:
            axes: Any = (nn.broadcast, 0)  # of the places and of the cache's layers
            scan = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=axes,
                length=c.num_hidden_layers,
            )
            return scan(c, name="layers")(x, places, layers)
        done = []
        for i in range(c.num_hidden_layers):
            cached = None if layers is None else layers[i]
            x, cached = Block(c, name=f"layers_{i}")(x, places, cached)
            done.append(cached)
        return x, tuple(done)


def _places(c: LlamaConfig, length: int, cache: Cache | None) -> _Places:
    places, keys = jnp.arange(length), length
    if cache is not None:
        places, keys = places + cache.used, cache.capacity
    behind = places[:, None] - jnp.arange(keys)[None]
    visible = behind >= 0
    if c.sliding_window is not None:
        visible &= behind < c.sliding_window
    per_token = frequencies(c.head_dim, c.rope_theta, c.rope_scaling)
    cos, sin = turn_by(places, per_token)
    return _Places(cos, sin, visible, None if cache is None else cache.used)


@functools.lru_cache  # one function per shape, so that what was compiled for it is found again
def llama(config: LlamaConfig) -> Callable[[Tree, jax.Array], jax.Array]:
    """Return the model as a function of its parameters and tokens.

    It takes parameters in either layout, with one tree per block or stacked, and computes in their
    dtype; norms, rotary positions, softmax and logits are float32. Every row of tokens is a text of
    its own: a token sees those before it.

    Args:
      config: shape of the model.

    Returns:
      A function ``(params, tokens) -> logits`` of integers (batch, length) to float32
      (batch, length, vocab_size). It raises a ``ValueError`` if the tokens do not have two axes or
      are more than ``config.max_position_embeddings``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune import models
      >>> config = models.LlamaConfig(
      ...     vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
      ...     num_attention_heads=4, num_key_value_heads=2, head_dim=16)
      >>> params = models.init_llama(config, jax.random.key(0))
      >>> apply = jax.jit(models.llama(config))
      >>> tokens = jnp.array([[5, 6, 7], [5, 6, 8]])
      >>> logits = apply(params, tokens)
      >>> logits.shape
      (2, 3, 256)
      >>> jnp.abs(logits[0] - logits[1]).max(axis=-1) > 0
      Array([False, False,  True], dtype=bool)

    Reference:
      Touvron et al., "LLaMA: Open and Efficient Foundation Language Models",
      arXiv:2302.13971.
    """

    def apply(params: Tree, tokens: jax.Array) -> jax.Array:
        check_tokens(config, tokens)
        return run_llama(config, params, tokens, None)[0]

    return apply


def run_llama(config: LlamaConfig, params: Tree, tokens: jax.Array, cache: Any) -> Any:
    """Return the logits of a ``Llama`` with parameters in either layout, and its longer cache."""
    return Llama(config, "layers" in params).apply({"params": params}, tokens, cache)


def check_tokens(config: LlamaConfig, tokens: jax.Array | np.ndarray) -> None:
    """Raise a ``ValueError`` if tokens are not (batch, length) of a length that the model takes."""
    if tokens.ndim != 2:
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)}; the model takes (batch, length). One text "
            "alone is tokens[None]."
        )
    if tokens.shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"tokens have length {tokens.shape[1]}, more than "
            f"max_position_embeddings={config.max_position_embeddings}; cut them into windows."
        )
