"""Greedy decoding with a cache of keys and values."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.models.config import LlamaConfig
from jaxprune.models.llama import Cache, check_tokens, run_llama
from jaxprune.types import Tree


def generate(
    config: LlamaConfig,
    params: Tree,
    prompt: Any,
    *,
    max_new_tokens: int,
    stop_at: tuple[int, ...] | None = None,
) -> jax.Array:
    """Continue texts with the most probable token, again and again.

    The prompt is read once; then each step computes one token against the cached keys and values,
    in one compiled loop that ends early when every text has ended. Each length of the prompt and
    ``max_new_tokens`` compiles anew. Stacked parameters compile sooner; on a CPU, the others make
    a step several times faster, since a scan copies each block's weights.

    Args:
      config: shape of the model.
      params: its parameters, stacked or not.
      prompt: integers, one text (length,) or several of one length (batch, length).
      max_new_tokens: how many tokens are added at most.
      stop_at: tokens that end a text; ``config.eos_token_ids`` by default, ``()`` for none.

    Returns:
      int32 (max_new_tokens,), or (batch, max_new_tokens). After the token that ended a text, that
      token is repeated.

    Raises:
      ValueError: if the prompt is empty, has a token outside the vocabulary, or leaves too little
        room below ``config.max_position_embeddings``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune import models
      >>> config = models.LlamaConfig(
      ...     vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
      ...     num_attention_heads=4, num_key_value_heads=2, head_dim=16)
      >>> params = models.init_llama(config, jax.random.key(0))
      >>> prompt = jnp.array([5, 6, 7])
      >>> new = models.generate(config, params, prompt, max_new_tokens=4)
      >>> logits = models.llama(config)(params, jnp.concatenate([prompt, new])[None])
      >>> bool((logits[0, 2:-1].argmax(axis=-1) == new).all())
      True
    """
    given = np.asarray(prompt)
    tokens = given[None] if given.ndim == 1 else given
    _check(config, tokens, max_new_tokens, given.shape)
    stops = config.eos_token_ids if stop_at is None else tuple(stop_at)
    # Without its stops, so that what was compiled serves every configuration of this shape.
    config = dataclasses.replace(config, eos_token_ids=())
    new = _decode(config, stops, max_new_tokens, params, tokens.astype(np.int32))
    return new[0] if given.ndim == 1 else new


class _State(NamedTuple):
    step: jax.Array  # int32 scalar, number of tokens written
    written: jax.Array  # int32 (batch, max_new_tokens)
    last: jax.Array  # int32 (batch,), the token written last
    cache: Cache


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _decode(
    config: LlamaConfig, stops: tuple[int, ...], limit: int, params: Tree, prompt: jax.Array
) -> jax.Array:
    cache = _empty(config, params, len(prompt), prompt.shape[1] + limit)

    def ended(token: jax.Array) -> jax.Array:
        return jnp.isin(token, jnp.array(stops, jnp.int32))

    def advance(tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        logits, longer = run_llama(config, params, tokens, cache)
        return jnp.argmax(logits[:, -1], axis=-1).astype(jnp.int32), longer

    def step(state: _State) -> _State:
        token, cache = advance(state.last[:, None], state.cache)
        token = jnp.where(ended(state.last), state.last, token)
        written = jax.lax.dynamic_update_slice(state.written, token[:, None], (0, state.step))
        return _State(state.step + 1, written, token, cache)

    def going(state: _State) -> jax.Array:
        return (state.step < limit) & ~ended(state.last).all()

    first, cache = advance(prompt, cache)
    # Filled with the first token: a text that ends at once shows it to the end.
    written = jnp.broadcast_to(first[:, None], (len(prompt), limit))
    state = jax.lax.while_loop(going, step, _State(jnp.int32(1), written, first, cache))
    # What the loop did not reach repeats each text's last token.
    reached = jnp.arange(limit)[None] < state.step
    return jnp.where(reached, state.written, state.last[:, None])


def _empty(config: LlamaConfig, params: Tree, batch: int, capacity: int) -> Cache:
    shape = (batch, capacity, config.num_key_value_heads, config.head_dim)
    dtype, depth = params["embed_tokens"]["embedding"].dtype, config.num_hidden_layers
    if "layers" in params:
        zeros = jnp.zeros((depth, *shape), dtype)
        return Cache((zeros, zeros), jnp.int32(0))
    zeros = jnp.zeros(shape, dtype)
    return Cache(((zeros, zeros),) * depth, jnp.int32(0))


def _check(config: LlamaConfig, prompt: np.ndarray, limit: int, given: tuple[int, ...]) -> None:
    if limit < 1:
        raise ValueError(f"max_new_tokens is {limit}; it has to be at least 1.")
    if prompt.size == 0:
        raise ValueError(
            f"prompt has shape {given}; at least one token is needed to continue from."
        )
    check_tokens(config, prompt)
    if prompt.shape[1] + limit > config.max_position_embeddings:
        raise ValueError(
            f"prompt has {prompt.shape[1]} tokens and max_new_tokens is {limit}, together more "
            f"than max_position_embeddings={config.max_position_embeddings}; shorten one of them."
        )
    bad = prompt[(prompt < 0) | (prompt >= config.vocab_size)]
    if bad.size:
        raise ValueError(
            f"prompt holds token {int(bad[0])}, outside the vocabulary of {config.vocab_size}; "
            "tokenise it with the model's own tokenizer."
        )
