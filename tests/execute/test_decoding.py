"""Text generated on compressed weights is that of the masked dense ones."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune
from jaxprune import formats, models, patterns
from jaxprune.execute import Executable, execute, pack
from tests.formats import masks as masks_of
from tests.models.real import weights_probe

CONFIG = models.LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    tie_word_embeddings=False,
)


def masked(config: models.LlamaConfig, params: Any, pattern: Any) -> tuple[Any, Any, Any]:
    """Pruned parameters, their masks, and the graph."""
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    graph = jaxprune.trace(models.llama(config), params, tokens)
    chosen = graph.where()

    def where(path: str, leaf: Any) -> bool:
        return chosen(path, leaf) and "embed" not in path  # tied: its rows are looked up, too

    layers = {path: axis for path, axis in graph.layers().items() if "embed" not in path}
    params, masks = jaxprune.prune(params, 0.5, pattern=pattern, where=where, layers=layers or None)
    return params, masks, graph


def random_mask(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Half of the weights of ``[*layers, in, out]``, made without the library's patterns."""
    if "mlp" in path:
        return masks_of.blocks(shape, (8, 8), 2, rng)
    return masks_of.nm(shape, 2, 4, rng)


def tokens_of(config: models.LlamaConfig, params: Any, prompt: Any, count: int) -> Any:
    return models.generate(config, params, prompt, max_new_tokens=count, stop_at=())


def mixed(matrix: Any, mask: Any, *, path: str) -> Any:
    """2:4 in attention, blocks in the feed-forward layers."""
    if "mlp" in path:
        return formats.BlockSparse.from_dense(matrix, mask, block=(8, 8), path=path)
    return formats.NMSparse.from_dense(matrix, mask, n=2, m=4, path=path)


EXPANDED = "implementation='xla' multiplies with the dense weight"  # N:M


def elsewhere(fast: Executable) -> list[Any]:
    """Where weights met something else than a product."""
    return [note for note in fast.densified() if note.reason != EXPANDED]


def greedy(params: Any) -> jax.Array:
    """Six tokens for each of four prompts, of one token, by a decoder of two scanned layers."""

    def logits(token: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: Any) -> tuple[jax.Array, None]:
            return x + jnp.tanh(x @ w["up"]) @ w["down"], None

        x, _ = lax.scan(layer, params["embedding"][token], params["layers"])
        return x @ params["head"]

    def step(i: jax.Array, tokens: jax.Array) -> jax.Array:
        best = jnp.argmax(logits(tokens[:, i]), -1).astype(tokens.dtype)
        return tokens.at[:, i + 1].set(best)

    return lax.fori_loop(0, 6, step, jnp.zeros((4, 7), jnp.int32).at[:, 0].set(jnp.arange(4)))


@pytest.mark.standard_promotion
def test_greedy_tokens_of_a_small_decoder_are_those_of_the_masked_weights(rng: np.random.Generator):
    def weight(kept: np.ndarray) -> np.ndarray:
        return np.where(kept, rng.normal(size=kept.shape), 0).astype(np.float32)

    up = weight(masks_of.nm((2, 8, 16), 2, 4, rng))
    down = weight(masks_of.blocks((2, 16, 8), (8, 4), 2, rng))
    head = weight(masks_of.nm((8, 11), 1, 4, rng))
    embedding = weight(np.ones((11, 8), bool))
    params = {"layers": {"up": up, "down": down}, "head": head, "embedding": embedding}
    layers = {
        "up": formats.NMSparse.from_dense(up, n=2, m=4),
        "down": formats.BlockSparse.from_dense(down, block=(8, 4)),
    }
    head = formats.NMSparse.from_dense(head, n=1, m=4)
    packed = {"layers": layers, "head": head, "embedding": embedding}
    fast = execute(greedy, packed, implementation="xla")
    want = np.asarray(jax.jit(greedy)(params))
    np.testing.assert_array_equal(jax.jit(fast)(packed), want)
    assert elsewhere(fast) == []
    assert len(set(want[:, 1:].ravel().tolist())) > 3  # the model does not stutter


@pytest.mark.slow(reason="compiles text generation twice")
def test_greedy_tokens_are_those_of_the_masked_weights():
    rng = np.random.default_rng(0)
    params = models.init_llama(CONFIG, jax.random.key(0), stacked=True)
    params = jax.tree.map(lambda w: w + rng.normal(0, 0.3, w.shape).astype(np.float32), params)
    graph = jaxprune.trace(models.llama(CONFIG), params, jax.ShapeDtypeStruct((1, 4), jnp.int32))
    masks = {path: random_mask(path, graph.shapes[path], rng) for path in graph.where().chosen}
    params = jaxprune.apply_masks(params, masks)
    packed = pack(params, masks, graph=graph, format=mixed)
    assert packed.dense == {}
    prompt = np.arange(12).reshape(4, 3)
    want = tokens_of(CONFIG, params, prompt, 8)
    run = functools.partial(tokens_of, CONFIG, prompt=prompt, count=8)
    fast = execute(run, packed, implementation="xla")
    np.testing.assert_array_equal(jax.jit(fast)(packed.params), want)
    assert elsewhere(fast) == []
    assert len(set(np.asarray(want).ravel().tolist())) > 3  # the model does not stutter


@pytest.mark.slow  # loads and compiles a model of 135 million weights
@pytest.mark.real.with_args(weights_probe)
@pytest.mark.parametrize("pattern", [patterns.NM(2, 4), patterns.Block((64, 64))])
def test_smollm2_generates_the_tokens_of_its_masked_weights(pattern: Any):
    model = models.load(models.fetch_smollm2(download=False), dtype=jnp.float32, stacked=True)
    params, masks, graph = masked(model.config, model.params, pattern)
    packed = pack(params, masks, graph=graph, format=pattern)
    assert packed.dense == {"embed_tokens/embedding": "it has no mask"}
    prompt = np.array([504, 3575, 282, 4649, 314])
    want = tokens_of(model.config, params, prompt, 12)
    run = functools.partial(tokens_of, model.config, prompt=prompt, count=12)
    fast = execute(run, packed, implementation="xla")
    np.testing.assert_array_equal(jax.jit(fast)(packed.params), want)
    assert elsewhere(fast) == []
