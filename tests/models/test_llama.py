"""Logits against a numpy model written from the formulas, and against transformers' own."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import models
from tests.models import reference, tiny
from tests.oracles import llama
from tests.oracles.conftest import COMMITTED, load

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "one head for each": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {"model_type": "qwen2", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "mistral": {"model_type": "mistral", "sliding_window": 4},
    "llama3": {"rope_scaling": LLAMA3},
}
TOKENS = np.random.default_rng(1).integers(0, tiny.SETTINGS["vocab_size"], (2, 11))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_formulas(variant: str, tmp_path: Path):
    settings = tiny.SETTINGS | VARIANTS[variant]
    tensors = tiny.weights(settings)
    model = models.load(tiny.write(tmp_path, settings, tensors), stacked=variant != "gqa")
    got = jax.jit(models.llama(model.config))(model.params, jnp.asarray(TOKENS))
    want = np.stack([reference.logits(tensors, settings, ids) for ids in TOKENS])
    assert np.ptp(want) > 1.0
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_llama3_scaling_divides_the_low_frequencies_only():
    plain = np.array([1.0, 0.5, 0.01])  # 5.1, 2.5 and 0.05 turns in 32 tokens
    changed = models.Llama3Scaling(8.0, 1.0, 4.0, 32)(plain)
    assert changed[0] == 1.0
    assert changed[2] == 0.01 / 8
    assert 0.5 / 8 < changed[1] < 0.5


def test_logits_are_those_of_transformers():
    recorded = load(Path(os.environ.get("JAXPRUNE_ORACLES", COMMITTED)), "e2e_llama")
    tokens = jnp.asarray(recorded["test_ids"].astype(np.int32))
    got = models.llama(llama.config(recorded.settings))(llama.parameters(recorded), tokens)
    np.testing.assert_allclose(got, recorded["dense/logits"], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> models.Pretrained:
    folder = tmp_path_factory.mktemp("model")
    return models.load(tiny.write(folder, tiny.SETTINGS, tiny.weights(tiny.SETTINGS)))


def test_stacked_parameters_compute_the_same(model: models.Pretrained):
    apply = models.llama(model.config)
    stacked = models.stack_layers(model.params)
    assert stacked["layers"]["self_attn"]["q_proj"]["kernel"].shape == (2, 16, 32)
    tokens = jnp.asarray(TOKENS)
    both = [jax.jit(apply)(params, tokens) for params in (model.params, stacked)]
    np.testing.assert_allclose(*both, atol=1e-5)
    again = models.unstack_layers(stacked)
    assert jax.tree.structure(again) == jax.tree.structure(model.params)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), again, model.params))


def test_bfloat16_parameters_compute_in_bfloat16(model: models.Pretrained):
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
    apply = jax.jit(models.llama(model.config))
    tokens = jnp.asarray(TOKENS)
    got, want = apply(narrow, tokens), apply(model.params, tokens)
    assert got.dtype == jnp.float32
    error = float(jnp.abs(got - want).max())
    assert 1e-3 < error < 0.05 * float(jnp.abs(want).max())


def test_random_parameters_are_drawn_in_both_layouts(key: jax.Array, model: models.Pretrained):
    for stacked in (False, True):
        params = models.init_llama(model.config, key, stacked=stacked)
        kernel = models.stack_layers(params)["layers"]["mlp"]["up_proj"]["kernel"]
        assert kernel.shape == (2, 16, 24)
        assert 0.018 < float(kernel.std()) < 0.022
        assert not (kernel[0] == kernel[1]).any()


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (
            (5,),
            "tokens have shape (5,); the model takes (batch, length). One text alone is "
            "tokens[None].",
        ),
        (
            (1, 65),
            "tokens have length 65, more than max_position_embeddings=64; cut them into windows.",
        ),
    ],
)
def test_tokens_of_another_shape_are_refused(
    model: models.Pretrained, shape: tuple[int, ...], text: str
):
    with pytest.raises(ValueError) as caught:
        models.llama(model.config)(model.params, jnp.zeros(shape, jnp.int32))
    assert str(caught.value) == text


def test_one_function_per_configuration(model: models.Pretrained):
    again = models.LlamaConfig.from_hf(tiny.SETTINGS)
    assert models.llama(again) is models.llama(model.config)


def test_blocks_are_stacked_in_the_order_of_their_numbers():
    params = {f"layers_{i}": {"scale": jnp.full(2, i)} for i in range(12)}
    stacked = models.stack_layers(params)
    assert stacked["layers"]["scale"][:, 0].tolist() == list(range(12))
    assert models.stack_layers(stacked) is stacked
    assert models.unstack_layers(params) is params
