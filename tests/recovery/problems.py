"""A pruned model whose weights contract one axis and two, and what can be trained of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxprune
from jaxprune import recovery
from jaxprune.graph import Graph
from tests.graph.cases import inputs, weights


def attention(p: Any, x: jax.Array) -> jax.Array:
    """Two heads; the output kernel is [heads, head_dim, width]."""
    q = jnp.einsum("td,dhk->thk", x * p["norm"]["scale"][None], p["query"])
    share = jax.nn.softmax(jnp.einsum("thk,shk->hts", q, q))
    return x + jnp.einsum("hts,shk,hkd->td", share, q, p["out"]) + p["bias"][None]


WEIGHTS = ("query", "out")


class Problem(NamedTuple):
    """A pruned model."""

    params: Any
    masks: Any
    graph: Graph
    x: jax.Array

    def loss(self, params: Any) -> jax.Array:
        """A loss of all outputs that differ."""
        return jnp.mean(jnp.square(attention(params, self.x) - 1.0), dtype=jnp.float32)


def problem(dtype: Any = jnp.float32) -> Problem:
    """The model, pruned by a third."""
    made = weights(query=(4, 2, 2), out=(2, 2, 4), bias=(4,))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), made)
    params["norm"] = {"scale": jnp.ones(4, dtype)}
    x = inputs(5, 4).astype(dtype)
    graph = jaxprune.trace(attention, params, x)
    masks = {name: jnp.arange(16).reshape(params[name].shape) % 3 != 0 for name in WEIGHTS}
    return Problem(jaxprune.apply_masks(params, masks), masks, graph, x)


def adapters(name: str, p: Problem) -> Any:
    """Adapters of one kind, rank 2, with a change in them as training makes it."""
    key = jax.random.key(3)
    return {
        "mask_lora": lambda: recovery.mask_lora(
            p.params, p.masks, rank=2, alpha=2.0, key=key, graph=p.graph
        ),
        "scale_lora": lambda: recovery.scale_lora(p.params, p.masks, rank=2, graph=p.graph),
        "lora_prune": lambda: recovery.lora_prune(
            p.params, p.masks, rank=2, key=key, graph=p.graph
        ),
        "full": lambda: recovery.full(p.params, where="out|bias|norm"),
        "sparse_deltas": lambda: recovery.sparse_deltas(
            p.params, 8, key=key, masks=p.masks, where=p.graph.where(), graph=p.graph
        ),
    }[name]()


def changed(adapters: Any) -> Any:
    """Adapters with 0.25 more in every number that is trained."""
    return jax.tree.map(
        lambda leaf: leaf + 0.25 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, adapters
    )
