"""A Llama in numpy and float64, from the formulas: Hugging Face's names and layout, one text."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Weights = Mapping[str, np.ndarray]


def logits(weights: Weights, settings: Mapping[str, Any], ids: np.ndarray) -> np.ndarray:
    """(length,) tokens to (length, vocabulary) logits; `settings` is the content of config.json."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(settings["num_hidden_layers"]):
        one = f"model.layers.{layer}."
        x = x + attention(
            w, one + "self_attn.", settings, norm(w, one + "input_layernorm", settings, x)
        )
        h = norm(w, one + "post_attention_layernorm", settings, x)
        gate = linear(w, one + "mlp.gate_proj", h)
        hidden = gate / (1 + np.exp(-gate)) * linear(w, one + "mlp.up_proj", h)
        x = x + linear(w, one + "mlp.down_proj", hidden)
    x = norm(w, "model.norm", settings, x)
    tied = settings.get("tie_word_embeddings", False)
    return x @ w["model.embed_tokens.weight" if tied else "lm_head.weight"].T


def norm(w: Weights, name: str, settings: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    root = np.sqrt((x**2).mean(-1, keepdims=True) + settings["rms_norm_eps"])
    return x / root * w[f"{name}.weight"]


def linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def attention(w: Weights, name: str, settings: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    heads, shared = settings["num_attention_heads"], settings["num_key_value_heads"]
    dim = settings.get("head_dim", settings["hidden_size"] // heads)
    length = len(x)
    q, k, v = (linear(w, f"{name}{p}_proj", x).reshape(length, -1, dim) for p in "qkv")
    window = settings.get("sliding_window") or length
    out = np.zeros((length, heads, dim))
    for head in range(heads):
        key, value = k[:, head // (heads // shared)], v[:, head // (heads // shared)]
        turned = [turn(settings, key[j], j) for j in range(length)]
        for i in range(length):
            first = max(0, i - window + 1)
            query = turn(settings, q[i, head], i)
            score = np.array([query @ turned[j] for j in range(first, i + 1)]) / math.sqrt(dim)
            share = np.exp(score - score.max())
            out[i, head] = share / share.sum() @ value[first : i + 1]
    return linear(w, f"{name}o_proj", out.reshape(length, -1))


def turn(settings: Mapping[str, Any], x: np.ndarray, place: int) -> np.ndarray:
    """Each pair (x_i, x_{i + half}) is a complex number; it turns by place · frequency."""
    half = len(x) // 2
    scaling = settings.get("rope_scaling")
    steps = [settings["rope_theta"] ** (-i / half) for i in range(half)]
    steps = np.array([scaled(scaling, step) if scaling else step for step in steps])
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * place * steps)
    return np.concatenate([turned.real, turned.imag])


def scaled(scaling: Mapping[str, Any], frequency: float) -> float:
    """Llama 3's rule as its authors write it, by wavelengths; or the linear one."""
    if scaling["rope_type"] == "linear":
        return frequency / scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    wavelength = 2 * math.pi / frequency
    if wavelength < context / high:
        return frequency
    if wavelength > context / low:
        return frequency / scaling["factor"]
    smooth = (context / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / scaling["factor"] + smooth * frequency
