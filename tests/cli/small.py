"""A model of three small blocks and its tokens on disk, and the command in this process."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from jaxprune import models
from jaxprune.cli import main

CONFIG = models.LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
    num_attention_heads=2, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
)  # fmt: skip
PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
PARTS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
PRUNED = {f"model.layers.{i}.{part}.weight" for i in range(3) for part in PARTS}


def write(folder: Path, *, seed: int = 0) -> Path:
    """Write `dense`, a model, and `tokens.npz`."""
    params = models.init_llama(CONFIG, jax.random.key(seed))
    params = jax.tree.map(lambda leaf: 10.0 * leaf if leaf.ndim == 2 else leaf, params)
    models.save(folder / "dense", CONFIG, params)
    rng = np.random.default_rng(seed)
    some = {name: rng.integers(0, 32, (4, 12), np.int32) for name in ("calib", "eval")}
    np.savez(folder / "tokens.npz", **some)
    return folder


def arguments(home: Path, out: Path, **options: Any) -> list[str]:
    """The words of `jaxprune llm`; options replace those that stand here."""
    tokens = home / "tokens.npz"
    known = {"model": home / "dense", "calibration": tokens, "eval": tokens, "out": out}
    words = ["llm"]
    for name, value in (known | {"method": "wanda"} | options).items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    return words


def llm(home: Path, out: Path, **options: Any) -> int:
    """Run `jaxprune llm`."""
    return main(arguments(home, out, **options))


def tensors(folder: Path, name: str = "model.safetensors") -> dict[str, np.ndarray]:
    """Read a file of tensors as another tool would."""
    return load_file(folder / name)


def report(folder: Path) -> dict[str, Any]:
    """Read the report of a run."""
    return json.loads((folder / "report.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, and its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
