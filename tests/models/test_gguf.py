"""GGUF files, against a writer that computes each weight alone."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import models
from tests.models import gguf_file

HEADS, SHARED, DIM, WIDTH, HIDDEN, VOCABULARY = 4, 2, 8, 32, 64, 40
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.file_type": 3,
    "llama.block_count": 1,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": HIDDEN,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": SHARED,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 100000.0,
    "llama.context_length": 128,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "ü", ""],
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.eos_token_id": 2,
}
# Every type that is supported, each on the tensor that suits it.
KINDS = {
    "token_embd": ((VOCABULARY, WIDTH), 8),
    "blk.0.attn_norm": ((WIDTH,), 0),
    "blk.0.attn_q": ((HEADS * DIM, WIDTH), 3),
    "blk.0.attn_k": ((SHARED * DIM, WIDTH), 3),
    "blk.0.attn_v": ((SHARED * DIM, WIDTH), 2),
    "blk.0.attn_output": ((WIDTH, HEADS * DIM), 1),
    "blk.0.ffn_norm": ((WIDTH,), 0),
    "blk.0.ffn_gate": ((HIDDEN, WIDTH), 2),
    "blk.0.ffn_up": ((HIDDEN, WIDTH), 30),
    "blk.0.ffn_down": ((WIDTH, HIDDEN), 3),
    "output_norm": ((WIDTH,), 0),
}


def tensors(rng: np.random.Generator) -> dict[str, gguf_file.Tensor]:
    made = {}
    for name, (shape, kind) in KINDS.items():
        if kind in (0, 1, 30):
            made[f"{name}.weight"] = gguf_file.plain(rng.normal(size=shape), kind)
        else:
            made[f"{name}.weight"] = gguf_file.quantised(rng, shape, kind)
    return made


@pytest.fixture
def made(rng: np.random.Generator) -> dict[str, gguf_file.Tensor]:
    return tensors(rng)


def test_every_weight_is_the_formulas(made: dict[str, gguf_file.Tensor], tmp_path: Path):
    config, params = models.load(gguf_file.write(tmp_path / "m.gguf", METADATA, made))
    assert (config.hidden_size, config.head_dim, config.vocab_size) == (WIDTH, DIM, VOCABULARY)
    assert (config.tie_word_embeddings, config.eos_token_ids) == (True, (2,))
    assert config.rope_theta == 100_000.0
    block = params["layers_0"]
    found = {
        "token_embd": params["embed_tokens"]["embedding"],
        "blk.0.attn_norm": block["input_layernorm"]["scale"],
        "blk.0.attn_v": block["self_attn"]["v_proj"]["kernel"].T,
        "blk.0.attn_output": block["self_attn"]["o_proj"]["kernel"].T,
        "blk.0.ffn_norm": block["post_attention_layernorm"]["scale"],
        "blk.0.ffn_gate": block["mlp"]["gate_proj"]["kernel"].T,
        "blk.0.ffn_up": block["mlp"]["up_proj"]["kernel"].T,
        "blk.0.ffn_down": block["mlp"]["down_proj"]["kernel"].T,
        "output_norm": params["norm"]["scale"],
    }
    for name, got in found.items():
        np.testing.assert_array_equal(got, made[f"{name}.weight"].values, err_msg=name)
        assert got.dtype == jnp.float32


@pytest.mark.parametrize(("name", "heads"), [("q", HEADS), ("k", SHARED)])
def test_rotary_pairs_become_halves_again(
    made: dict[str, gguf_file.Tensor], tmp_path: Path, name: str, heads: int
):
    _, params = models.load(gguf_file.write(tmp_path / "m.gguf", METADATA, made))
    got = np.asarray(params["layers_0"]["self_attn"][f"{name}_proj"]["kernel"]).T
    stored = made[f"blk.0.attn_{name}.weight"].values
    half = DIM // 2
    for head in range(heads):
        for pair in range(half):
            for part in range(2):  # interleaved: a pair's two rows lie beside each other
                row = got[head * DIM + part * half + pair]
                np.testing.assert_array_equal(row, stored[head * DIM + 2 * pair + part])


def test_a_head_of_its_own_is_read(
    made: dict[str, gguf_file.Tensor], rng: np.random.Generator, tmp_path: Path
):
    head = gguf_file.quantised(rng, (VOCABULARY, WIDTH), 8)
    file = gguf_file.write(tmp_path / "m.gguf", METADATA, made | {"output.weight": head})
    config, params = models.load(file, stacked=True, dtype=jnp.bfloat16)
    assert not config.tie_word_embeddings
    assert params["layers"]["self_attn"]["q_proj"]["kernel"].shape == (1, WIDTH, HEADS * DIM)
    want = jnp.asarray(head.values.T).astype(jnp.bfloat16)
    assert bool((params["lm_head"]["kernel"] == want).all())


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"general.architecture": "gemma3"}, "has architecture 'gemma3'; allowed: llama."),
        (
            {"llama.rope.scaling.type": "yarn"},
            "scales its rotary frequencies, which is not supported.",
        ),
    ],
)
def test_another_model_is_refused(
    made: dict[str, gguf_file.Tensor], tmp_path: Path, more: dict[str, Any], text: str
):
    file = gguf_file.write(tmp_path / "m.gguf", METADATA | more, made)
    with pytest.raises(ValueError) as caught:
        models.load(file)
    assert str(caught.value) == f"{file} {text}"


def test_tensors_that_do_not_fit_are_named(made: dict[str, gguf_file.Tensor], tmp_path: Path):
    extra = made | {"rope_freqs.weight": made["output_norm.weight"]}
    file = gguf_file.write(tmp_path / "m.gguf", METADATA, extra)
    with pytest.raises(ValueError) as caught:
        models.load(file)
    assert str(caught.value) == (
        f"{file} holds tensors that a Llama does not have: rope_freqs.weight."
    )
    less = {name: tensor for name, tensor in made.items() if name != "blk.0.ffn_up.weight"}
    with pytest.raises(ValueError) as caught:
        models.load(gguf_file.write(file, METADATA, less))
    assert str(caught.value) == f"{file} holds no tensor blk.0.ffn_up.weight."


def test_another_quantisation_is_named(made: dict[str, gguf_file.Tensor], tmp_path: Path):
    odd = made["blk.0.ffn_up.weight"]._replace(kind=14)
    file = gguf_file.write(tmp_path / "m.gguf", METADATA, made | {"blk.0.ffn_up.weight": odd})
    with pytest.raises(ValueError) as caught:
        models.load(file)
    assert str(caught.value) == (
        f"blk.0.ffn_up.weight in {file} has GGUF type 14; supported: F32, F16, BF16, Q4_0, Q4_1, "
        "Q8_0. Requantise the file to one of them."
    )


def test_damaged_files_are_named(made: dict[str, gguf_file.Tensor], tmp_path: Path):
    file = tmp_path / "m.gguf"
    with pytest.raises(FileNotFoundError, match=r"m\.gguf is not there\."):
        models.load(file)
    whole = gguf_file.write(file, METADATA, made).read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError) as caught:
        models.load(file)
    assert str(caught.value) == f"{file} is cut short in output_norm.weight; fetch it again."
    file.write_bytes(whole[:200])
    with pytest.raises(ValueError, match=r"m\.gguf is cut short: .*; fetch it again\."):
        models.load(file)
    file.write_bytes(b"PK" + whole)
    with pytest.raises(ValueError) as caught:
        models.load(file)
    assert str(caught.value) == f"{file} is no GGUF file: it does not begin with GGUF."
    file.write_bytes(whole[:4] + b"\x01" + whole[5:])
    with pytest.raises(ValueError) as caught:
        models.load(file)
    assert str(caught.value) == f"{file} has GGUF version 1; 2 and 3 are supported."
