"""config.json: what is read, what is written, what is refused."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from jaxprune import models
from tests.models.tiny import SETTINGS

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tie_word_embeddings": True, "eos_token_id": 2, "bos_token_id": 1},
        {"eos_token_id": [2, 7], "attention_bias": True, "mlp_bias": True},
        {"model_type": "mistral", "sliding_window": 4096},
        {"model_type": "qwen2"},
        {"rope_scaling": LLAMA3},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
)
def test_what_is_written_is_read_again(more: dict[str, Any]):
    config = models.LlamaConfig.from_hf(SETTINGS | more)
    written = config.to_hf()
    assert models.LlamaConfig.from_hf(written) == config
    kept = {n: v for n, v in (SETTINGS | more).items() if n != "rope_scaling"}
    assert {name: written[name] for name in kept} == kept


def test_what_is_absent_has_the_default_of_the_family():
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    old = {name: SETTINGS[name] for name in (*sizes, "model_type", "num_attention_heads")}
    config = models.LlamaConfig.from_hf(old)
    assert (config.num_key_value_heads, config.head_dim) == (4, 4)
    assert (config.rope_theta, config.rms_norm_eps) == (10_000.0, 1e-6)
    assert not config.tie_word_embeddings


def test_rope_parameters_of_newer_files_are_read():
    settings = {name: value for name, value in SETTINGS.items() if name != "rope_theta"}
    config = models.LlamaConfig.from_hf(
        settings | {"rope_parameters": LLAMA3 | {"rope_theta": 7.0}}
    )
    assert config.rope_theta == 7.0
    assert config.rope_scaling == models.Llama3Scaling(8.0, 1.0, 4.0, 8192)


def test_a_window_counts_for_mistral_alone():
    qwen2 = SETTINGS | {"model_type": "qwen2", "sliding_window": 4, "use_sliding_window": False}
    assert models.LlamaConfig.from_hf(qwen2).sliding_window is None


FAMILY = (
    "allowed: llama, mistral, qwen2. Other architectures differ from Llama in ways that would be "
    "passed over silently."
)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"model_type": "gpt2"}, f"model_type is 'gpt2'; {FAMILY}"),
        (
            {"vocab_size": None},
            "config.json has vocab_size=None; it has to be an integer. The file may be that of an "
            "adapter or of another library.",
        ),
        (
            {"hidden_act": "gelu"},
            "config.json has hidden_act='gelu', which is not supported; load a checkpoint without "
            "it.",
        ),
        (
            {"quantization_config": {"bits": 4}},
            "config.json has quantization_config={'bits': 4}, which is not supported; load a "
            "checkpoint without it.",
        ),
        (
            {"use_sliding_window": True},
            "config.json has use_sliding_window=True, which is not supported; load a checkpoint "
            "without it.",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "config.json has rope_scaling of type 'yarn'; allowed: default, linear, llama3.",
        ),
        (
            {"num_key_value_heads": 3},
            "num_key_value_heads is 3, which does not divide num_attention_heads=4; each is shared "
            "by as many query heads.",
        ),
        ({"head_dim": 7}, "head_dim is 7; rotary positions turn pairs, so it has to be even."),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it has to be at least 1."),
    ],
)
def test_what_is_not_a_llama_is_refused(more: dict[str, Any], text: str):
    with pytest.raises(ValueError) as caught:
        models.LlamaConfig.from_hf(SETTINGS | more)
    assert str(caught.value) == text


def test_a_scaling_of_ones_own_cannot_be_written():
    def halved(frequencies: np.ndarray) -> np.ndarray:
        return frequencies / 2

    config = dataclasses.replace(models.LlamaConfig.from_hf(SETTINGS), rope_scaling=halved)
    with pytest.raises(
        ValueError, match=r"has no form in a config\.json; allowed: LinearScaling, "
    ):
        config.to_hf()
