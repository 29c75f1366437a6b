"""Small models as a Hugging Face checkpoint has them, written without the library."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SETTINGS: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,  # not 16 / 4: the heads are wider than their share
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def weights(settings: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors, (out, in), large enough for every part to matter."""
    rng = np.random.default_rng(seed)
    d, f, v = (settings[n] for n in ("hidden_size", "intermediate_size", "vocab_size"))
    dim = settings["head_dim"]
    q, kv = settings["num_attention_heads"] * dim, settings["num_key_value_heads"] * dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, d)}
    for i in range(settings["num_hidden_layers"]):
        matrices = {
            "self_attn.q_proj": (q, d),
            "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, q),
            "mlp.gate_proj": (f, d),
            "mlp.up_proj": (f, d),
            "mlp.down_proj": (d, f),
        }
        for name, shape in matrices.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
            if biased(settings, name):
                shapes[f"model.layers.{i}.{name}.bias"] = shape[:1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{name}.weight"] = (d,)
    shapes["model.norm.weight"] = (d,)
    if not settings["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, d)
    return {
        name: rng.normal(1.0 if "norm" in name else 0.0, 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def biased(settings: dict[str, Any], name: str) -> bool:
    if name.startswith("mlp"):
        return settings.get("mlp_bias", False)
    return settings.get("attention_bias", False) or (
        settings["model_type"] == "qwen2" and "o_proj" not in name
    )


def write(folder: Path, settings: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """One file, as small models have it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_shards(folder: Path, settings: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """Three files, the tensors dealt out in turn, and an index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    names = [f"model-0000{i + 1}-of-00003.safetensors" for i in range(3)]
    place = {tensor: names[i % 3] for i, tensor in enumerate(tensors)}
    for name in names:
        save_file({t: a for t, a in tensors.items() if place[t] == name}, folder / name)
    index = {"metadata": {}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
