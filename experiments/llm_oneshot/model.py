"""The dense model and what all cells share of it, each made once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune
from experiments.llm_oneshot import text
from experiments.llm_oneshot.settings import Settings
from experiments.runner.api import Context
from jaxprune import models
from jaxprune.graph import Graph

WEIGHTS = r"_proj/kernel$"  # of the blocks; embedding and head stay
FIRST = 8  # windows of 512 that other figures of this project are on

TINY = models.LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    tie_word_embeddings=True,
)


class Model(NamedTuple):
    """A model, with its blocks stacked: scanned, they compile in the time of one."""

    vocabulary: int
    params: Any
    apply: Callable[[Any, jax.Array], jax.Array]
    loss: Callable[[Any, jax.Array], jax.Array]  # (parameters, windows [B, L]) -> ()
    loss_of_one: Callable[[Any, jax.Array], jax.Array]  # (parameters, window [L]) -> ()


def dense(settings: Settings, context: Context) -> Model:
    """Return the dense model."""
    return context.once(f"model {settings.model}", lambda: _loaded(settings.model))


def graph_of(settings: Settings, context: Context) -> Graph:
    """Return the model's graph, for batches of calibration windows."""

    def traced() -> Graph:
        model = dense(settings, context)
        like = jnp.zeros((settings.calibration_batch, settings.length), jnp.int32)
        return jaxprune.trace(model.apply, model.params, like)

    return context.once("graph", traced)


def measured(settings: Settings, context: Context, params: Any) -> dict[str, float]:
    """Return perplexity on the held-out novel, and the share of zeros."""
    model = dense(settings, context)
    count, length = settings.test_windows, settings.length
    windows = text.held_out(context, count=count, length=length, vocabulary=model.vocabulary)
    found = models.perplexity(model.apply, params, windows, batch_size=settings.test_batch)
    first = jnp.log(jnp.asarray(found.per_window[:FIRST], jnp.float32))
    return {
        "perplexity": found.value,
        "perplexity_first": float(jnp.exp(jnp.mean(first))),
        "sparsity": float(share_of_zeros(params)),
    }


@jax.jit
def share_of_zeros(params: Any) -> jax.Array:
    """Return the share of zeros among the weights that are pruned."""
    chosen = weights_of(params)
    zeros = [jnp.mean(leaf == 0, dtype=jnp.float32) * leaf.size for leaf in chosen.values()]
    return jnp.sum(jnp.stack(zeros)) / sum(leaf.size for leaf in chosen.values())


def weights_of(params: Any) -> dict[str, jax.Array]:
    """Return the weights that are pruned, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {jax.tree_util.keystr(at, simple=True, separator="/"): leaf for at, leaf in leaves}
    return {path: leaf for path, leaf in named.items() if path.endswith("_proj/kernel")}


def _loaded(name: str) -> Model:
    if name == "tiny":
        params: Any = models.init_llama(TINY, jax.random.key(0), stacked=True)
        # Larger weights than a new model has, so that they matter.
        return _of(TINY, jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim > 2 else leaf, params))
    return _of(*models.load(models.fetch_smollm2(), stacked=True))


def _of(config: models.LlamaConfig, params: Any) -> Model:
    apply = models.llama(config)

    def loss(params: Any, windows: jax.Array) -> jax.Array:
        logits, right = apply(params, windows)[:, :-1], windows[:, 1:]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, right))

    def loss_of_one(params: Any, window: jax.Array) -> jax.Array:
        return loss(params, window[None])

    return Model(config.vocab_size, params, apply, loss, loss_of_one)
