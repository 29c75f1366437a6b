"""A Llama-shaped decoder whose blocks are stacked, and where its arrays lie on a mesh.

Blocks are scanned, so that one is compiled, and computed again in the backward pass. Weights are
float32, products bfloat16.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

FSDP, TENSOR = "fsdp", "tensor"
BLOCK_KERNELS = r"^layers/.*kernel$"


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of a decoder."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int

    @property
    def prunable(self) -> int:
        """Weights of the blocks' kernels."""
        read = self.width * self.head_dim * (self.heads + 2 * self.kv_heads)
        written = self.heads * self.head_dim * self.width
        return self.layers * (read + written + 3 * self.width * self.hidden)


MODELS = {
    "1B": Shape(16, 2048, 32, 8, 64, 8192, 128256),
    "7B": Shape(32, 4096, 32, 32, 128, 11008, 32000),
    "70B": Shape(80, 8192, 64, 8, 128, 28672, 128256),
}


def parameters(shape: Shape, mesh: Mesh) -> Any:
    """Describe the weights and where they lie."""
    width, queries, keys = (
        shape.width,
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
    )
    into, out_of = P(None, FSDP, TENSOR), P(None, TENSOR, FSDP)

    def array(spec: P, *lengths: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(lengths, jnp.float32, sharding=NamedSharding(mesh, spec))

    def kernel(spec: P, rows: int, columns: int) -> dict[str, Any]:
        return {"kernel": array(spec, shape.layers, rows, columns)}

    norm = {"scale": array(P(), shape.layers, width)}
    return {
        "embed_tokens": {"embedding": array(P(TENSOR, FSDP), shape.vocabulary, width)},
        "layers": {
            "input_layernorm": norm,
            "self_attn": {
                "q_proj": kernel(into, width, queries),
                "k_proj": kernel(into, width, keys),
                "v_proj": kernel(into, width, keys),
                "o_proj": kernel(out_of, queries, width),
            },
            "post_attention_layernorm": norm,
            "mlp": {
                "gate_proj": kernel(into, width, shape.hidden),
                "up_proj": kernel(into, width, shape.hidden),
                "down_proj": kernel(out_of, shape.hidden, width),
            },
        },
        "norm": {"scale": array(P(), width)},
        "lm_head": {"kernel": array(P(FSDP, TENSOR), width, shape.vocabulary)},
    }


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The function of a shape on a mesh."""

    shape: Shape
    mesh: Mesh

    def logits(self, params: Any, tokens: jax.Array) -> jax.Array:
        """Return float32 (batch, length, vocabulary) of tokens (batch, length)."""
        x = _normalised(params["norm"], self.blocks(params, tokens))
        return _product(params["lm_head"], x).astype(jnp.float32)

    def blocks(self, params: Any, tokens: jax.Array) -> jax.Array:
        """Return the residual stream after all blocks, bfloat16 (batch, length, width)."""
        x = params["embed_tokens"]["embedding"].astype(jnp.bfloat16)[tokens]
        x = self._placed(x, P(FSDP, TENSOR, None))
        body = jax.checkpoint(lambda x, layer: (self._block(layer, x), None))
        return jax.lax.scan(body, x, params["layers"])[0]

    def loss(self, params: Any, tokens: jax.Array) -> jax.Array:
        """Return the mean cross-entropy of each next token of (batch, length + 1)."""
        logits = self._placed(self.logits(params, tokens[:, :-1]), P(FSDP, None, TENSOR))
        target = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - target)

    def _placed(self, x: jax.Array, spec: P) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def _block(self, layer: Any, x: jax.Array) -> jax.Array:
        x = self._placed(x, P(FSDP, TENSOR, None))
        read = self._attention(layer["self_attn"], _normalised(layer["input_layernorm"], x))
        x = x + self._placed(read, P(FSDP, TENSOR, None))
        mlp = layer["mlp"]
        seen = _normalised(layer["post_attention_layernorm"], x)
        hidden = jax.nn.silu(_product(mlp["gate_proj"], seen)) * _product(mlp["up_proj"], seen)
        hidden = self._placed(hidden, P(FSDP, None, TENSOR))
        return x + self._placed(_product(mlp["down_proj"], hidden), P(FSDP, TENSOR, None))

    def _attention(self, layer: Any, x: jax.Array) -> jax.Array:
        shape, (batch, length) = self.shape, x.shape[:2]
        query = _turned(self._heads(layer["q_proj"], x, shape.heads))
        key = _turned(self._heads(layer["k_proj"], x, shape.kv_heads))
        value = self._heads(layer["v_proj"], x, shape.kv_heads)
        groups = shape.heads // shape.kv_heads
        query = query.reshape(batch, length, shape.kv_heads, groups, shape.head_dim)
        scores = jnp.einsum("btkgd,bskd->bkgts", query, key).astype(jnp.float32)
        places = jnp.arange(length)
        seen = (places[:, None] >= places)[None, None, None]
        scores = jnp.where(seen, scores * shape.head_dim**-0.5, jnp.finfo(jnp.float32).min)
        share = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        read = jnp.einsum("bkgts,bskd->btkgd", share, value).reshape(batch, length, -1)
        return _product(layer["o_proj"], self._placed(read, P(FSDP, None, TENSOR)))

    def _heads(self, layer: Any, x: jax.Array, count: int) -> jax.Array:
        found = _product(layer, x).reshape(*x.shape[:2], count, self.shape.head_dim)
        return self._placed(found, P(FSDP, None, TENSOR, None))


def _product(layer: Any, x: jax.Array) -> jax.Array:
    return x @ layer["kernel"].astype(x.dtype)


def _normalised(layer: Any, x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-5)
    return (wide * layer["scale"][None, None]).astype(x.dtype)


def _turned(x: jax.Array) -> jax.Array:
    """Turn pairs of a head's entries by the token's place."""
    half = x.shape[-1] // 2
    per_token = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * per_token[None]
    cos, sin = (f(angle)[None, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    left, right = x[..., :half], x[..., half:]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
