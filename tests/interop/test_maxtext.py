"""MaxText: the snippets of the docs train a small model on a mesh, stop, resume, and export.

Each run is a process of its own, for MaxText sets jax up for itself.
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxprune._core import paths

pytest.importorskip(
    "maxtext", reason="the package maxtext is missing: pip install 'maxtext[tpu]==0.2.5'"
)
pytestmark = pytest.mark.slow(reason="four runs of MaxText, each imports and compiles for 20 s")

SNIPPETS = Path(__file__).resolve().parents[2] / "docs" / "snippets"
STEPS, STOPPED = 10, 5
LAYERS, SPARSITY = 4, 0.8
SETTINGS = {
    "hardware": "cpu", "skip_jax_distributed_system": True, "dataset_type": "synthetic",
    "ici_fsdp_parallelism": 4, "ici_tensor_parallelism": 2, "per_device_batch_size": 1,
    "max_target_length": 32, "attention": "dot_product", "log_config": False,
    "learning_rate": 1e-2, "learning_rate_schedule_steps": STEPS,
    "checkpoint_period": 4, "async_checkpointing": False, "save_checkpoint_on_completion": True,
}  # fmt: skip
LLAMA = {
    "base_emb_dim": 64, "base_mlp_dim": 128, "base_num_decoder_layers": LAYERS, "head_dim": 16,
    "base_num_query_heads": 4, "base_num_kv_heads": 2, "vocab_size": 256,
}  # fmt: skip
GPT3 = {"model_name": "gpt3-52k"}  # the smallest that it knows by name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("maxtext")


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    train(folder, "whole", STEPS, LLAMA)
    return exported(folder, "whole")


def test_every_layer_is_as_sparse_as_asked(whole: dict[str, Any]):
    masks, params = paths.flatten(whole["masks"]), paths.flatten(whole["params"])
    kinds = {path.removeprefix("decoder/layers/") for path in masks}
    attention = {f"self_attention/{name}/kernel" for name in ("key", "out", "query", "value")}
    assert kinds == attention | {f"mlp/{name}/kernel" for name in ("wi_0", "wi_1", "wo")}
    for path, mask in masks.items():
        layers = np.moveaxis(mask, 1, 0).reshape(LAYERS, -1)
        expected = round((1 - SPARSITY) * layers.shape[1])
        assert layers.sum(axis=1).tolist() == [expected] * LAYERS, path
        np.testing.assert_array_equal(params[path] != 0.0, mask, err_msg=path)


def test_masks_are_sharded_as_their_parameters(whole: dict[str, Any]):
    placed = whole["leaves"]
    specs = {}
    for path, mask in paths.flatten(placed["opt_state"]["masks"]).items():
        weight = paths.flatten(placed["params"]["params"])[path]
        assert mask.sharding == weight.sharding, path
        specs[path.removeprefix("decoder/layers/")] = tuple(mask.sharding.partition_spec)
    assert specs["mlp/wi_0/kernel"] == ("fsdp", None, "tensor")
    assert specs["self_attention/out/kernel"] == ("tensor", None, None, "fsdp")


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(whole: dict[str, Any], folder: Path):
    train(folder, "stopped", STOPPED, LLAMA)
    log = train(folder, "stopped", STEPS, LLAMA)
    assert f"completed step: {STOPPED}," in log
    assert f"completed step: {STOPPED - 1}," not in log
    saved, others = (run["saved"] for run in (exported(folder, "stopped"), whole))
    jax.tree.map(np.testing.assert_array_equal, saved, others)


def test_its_smallest_model(folder: Path):
    train(folder, "gpt3", STEPS, GPT3)
    run = exported(folder, "gpt3")
    for path, mask in load_file(run["out"]).items():
        assert int(mask.sum()) == round((1 - SPARSITY) * mask.size), path
    assert set(paths.flatten(run["masks"])) == {
        "decoder/layers/mlp/wi/kernel",
        "decoder/layers/mlp/wo/kernel",
        "decoder/layers/self_attention/out/kernel",
        "decoder/layers/self_attention/qkv_proj/kernel",
    }


def train(folder: Path, name: str, steps: int, model: dict[str, Any]) -> str:
    """Run MaxText with the snippet, and return what it logged."""
    given = {"run_name": name, "base_output_directory": folder, "steps": steps}
    arguments = [f"{key}={value}" for key, value in (given | SETTINGS | model).items()]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "DECOUPLE_GCLOUD": "TRUE",
    }
    command = [sys.executable, SNIPPETS / "maxtext_train.py", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def exported(folder: Path, name: str) -> dict[str, Any]:
    """Read the last checkpoint with the snippet, and return its variables."""
    items = folder / name / "checkpoints" / str(STEPS - 1) / "items"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["export", str(items), str(folder / f"{name}.safetensors")])
        return runpy.run_path(str(SNIPPETS / "maxtext_export.py"))
