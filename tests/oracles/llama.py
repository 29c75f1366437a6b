"""A recorded Llama as our model of its shape."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import models


def config(hyper: Any) -> models.LlamaConfig:
    """Read the shape from a recording's settings."""
    return models.LlamaConfig(
        vocab_size=hyper["vocab"],
        hidden_size=hyper["hidden"],
        intermediate_size=hyper["intermediate"],
        num_hidden_layers=hyper["layers"],
        num_attention_heads=hyper["heads"],
        num_key_value_heads=hyper["kv_heads"],
        head_dim=hyper["head_dim"],
        rms_norm_eps=hyper["rms_norm_eps"],
        rope_theta=hyper["rope_theta"],
    )


def parameters(data: Any) -> Any:
    """The dense parameters in our layout: `layers_0/mlp/up_proj/kernel`, (in, out)."""
    params: Any = {}
    for match in data.matches(r"dense/(?:model\.)?(.+)\.weight"):
        node, leaf = params, data[match[0]]
        for part in match[1].replace("layers.", "layers_").split("."):
            node = node.setdefault(part, {})
        kind = "scale" if leaf.ndim == 1 else "embedding" if "embed" in match[1] else "kernel"
        node[kind] = jnp.asarray(leaf.T if kind == "kernel" else leaf)
    return params


def linear(tree: Any) -> Iterator[tuple[int, str, jax.Array]]:
    """The blocks' kernels: the number of the block, the name, and the array (in, out)."""
    for block in sorted(name for name in tree if name.startswith("layers_")):
        for part in ("self_attn", "mlp"):
            for name, leaf in tree[block][part].items():
                yield int(block.removeprefix("layers_")), f"{part}.{name}", leaf["kernel"]
