"""Hugging Face folders: read, written, and damaged in many ways."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxprune import models
from tests.models import tiny

WEIGHTS = tiny.weights(tiny.SETTINGS)
TIED = tiny.SETTINGS | {"tie_word_embeddings": True}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "model", tiny.SETTINGS, WEIGHTS)


def read(folder: Path) -> dict[str, np.ndarray]:
    """What another tool finds in a folder."""
    found: dict[str, np.ndarray] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert sorted(got) == sorted(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.mark.parametrize("stacked", [False, True])
def test_saving_gives_back_the_checkpoint(folder: Path, tmp_path: Path, stacked: bool):
    config, params = models.load(folder, stacked=stacked)
    models.save(tmp_path / "again", config, params)
    assert_same(read(tmp_path / "again"), WEIGHTS)
    settings = json.loads((tmp_path / "again" / "config.json").read_text())
    assert settings["architectures"] == ["LlamaForCausalLM"]
    assert settings["torch_dtype"] == "float32"
    assert {name: settings[name] for name in tiny.SETTINGS} == tiny.SETTINGS


def test_kernels_are_transposed(folder: Path):
    params = models.load(folder).params
    np.testing.assert_array_equal(
        params["layers_1"]["mlp"]["down_proj"]["kernel"],
        WEIGHTS["model.layers.1.mlp.down_proj.weight"].T,
    )


def test_shards_are_read_and_written(tmp_path: Path):
    config, params = models.load(tiny.write_shards(tmp_path / "a", tiny.SETTINGS, WEIGHTS))
    models.save(tmp_path / "b", config, params, shard_bytes=8_000)
    files = sorted((tmp_path / "b").glob("*.safetensors"))
    assert len(files) > 2
    # A file has a header; its tensors stay within the limit.
    assert all(sum(a.nbytes for a in load_file(file).values()) <= 8_000 for file in files)
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "b" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in WEIGHTS.values())
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "b" / file)
    assert_same(read(tmp_path / "b"), WEIGHTS)
    assert_same_tree(models.load(tmp_path / "b").params, params)


def assert_same_tree(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def test_bfloat16_stays_bfloat16(tmp_path: Path):
    narrow = {name: array.astype(ml_dtypes.bfloat16) for name, array in WEIGHTS.items()}
    config, params = models.load(tiny.write(tmp_path / "a", tiny.SETTINGS, narrow))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    models.save(tmp_path / "b", config, params)
    assert_same(read(tmp_path / "b"), narrow)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    wide = models.load(tmp_path / "b", dtype=jnp.float32).params
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {jnp.dtype(jnp.float32)}


def test_a_tied_head_is_not_written_and_may_be_there(tmp_path: Path):
    tensors = WEIGHTS | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    config, params = models.load(tiny.write(tmp_path / "a", TIED, tensors))
    assert "lm_head" not in params
    models.save(tmp_path / "b", config, params)
    assert_same(read(tmp_path / "b"), {n: a for n, a in WEIGHTS.items() if n != "lm_head.weight"})


def test_pruned_weights_are_zeros_for_others(folder: Path, tmp_path: Path):
    config, params = models.load(folder)
    kernel = params["layers_0"]["mlp"]["up_proj"]["kernel"]
    params["layers_0"]["mlp"]["up_proj"]["kernel"] = kernel.at[:, 3].set(0.0)
    models.save(tmp_path / "pruned", config, params)
    got = read(tmp_path / "pruned")["model.layers.0.mlp.up_proj.weight"]
    assert (got[3] == 0).all()  # an output of theirs is a row
    assert (got[:3] != 0).all()


def test_a_folder_that_holds_a_model_is_not_overwritten(folder: Path):
    config, params = models.load(folder)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError) as caught:
        models.save(folder, config, params)
    assert str(caught.value) == (
        f"{folder} already holds a model; pass overwrite=True to replace it, or another folder."
    )
    assert (folder / "model.safetensors").read_bytes() == before


def test_overwriting_leaves_nothing_of_the_old_model(tmp_path: Path):
    folder = tiny.write_shards(tmp_path / "model", tiny.SETTINGS, WEIGHTS)
    (folder / "masks.bin").write_bytes(b"mine")
    config, params = models.load(folder)
    models.save(folder, config, jax.tree.map(jnp.zeros_like, params), overwrite=True)
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["config.json", "masks.bin", "model.safetensors"]
    assert not any(array.any() for array in read(folder).values())


def test_an_interrupted_save_is_no_model(folder: Path, monkeypatch: pytest.MonkeyPatch):
    config, params = models.load(folder)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("jaxprune.models.checkpoint.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        models.save(folder, config, params, overwrite=True)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there; a model is a folder"):
        models.load(folder)
    models.save(folder, config, params)  # the next one needs no leave
    assert_same(read(folder), WEIGHTS)


def test_parameters_of_another_model_are_not_saved(folder: Path, tmp_path: Path):
    config, params = models.load(folder)
    extra = {name: tree for name, tree in params.items() if name != "norm"} | {
        "adapter": {"kernel": jnp.ones((2, 2))}
    }
    with pytest.raises(ValueError) as caught:
        models.save(tmp_path / "b", config, extra)
    assert str(caught.value) == (
        "params do not fit the configuration: missing norm/scale; unknown adapter/kernel. Pass the "
        "configuration that they were made for."
    )
    params["norm"]["scale"] = jnp.ones(3)
    with pytest.raises(ValueError, match=r"norm/scale has shape \(3,\) in the parameter, but "):
        models.save(tmp_path / "b", config, params)


def without(name: str) -> dict[str, np.ndarray]:
    return {n: a for n, a in WEIGHTS.items() if n != name}


V_PROJ = "model.layers.1.self_attn.v_proj.weight"


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        (
            without(V_PROJ),
            "the tensors in {folder} are not those of its config.json: missing "
            f"{V_PROJ}; unknown none.",
        ),
        (
            WEIGHTS | {"model.layers.0.mlp.router.weight": np.ones((2, 2), np.float32)},
            "the tensors in {folder} are not those of its config.json: missing none; unknown "
            "model.layers.0.mlp.router.weight.",
        ),
        (
            WEIGHTS | {V_PROJ: np.ones((16, 17), np.float32)},
            f"{V_PROJ} has shape (16, 17) in the checkpoint, but (16, 16) by the configuration; "
            "they belong to different models.",
        ),
        (
            WEIGHTS | {V_PROJ: np.ones((16, 16), np.int8)},
            f"{V_PROJ} has dtype int8; weights have to be floating-point. A quantised checkpoint "
            "has to be dequantised first.",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, tensors: dict[str, np.ndarray], text: str
):
    folder = tiny.write(tmp_path / "model", tiny.SETTINGS, tensors)
    with pytest.raises(ValueError) as caught:
        models.load(folder)
    assert str(caught.value) == text.format(folder=folder)


def test_a_folder_without_a_model_says_what_a_model_is(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as caught:
        models.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'config.json'} is not there; a model is a folder with config.json and "
        "safetensors, or a .gguf file."
    )


def test_other_formats_are_named(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError) as caught:
        models.load(folder)
    assert str(caught.value) == (
        f"{folder} holds neither model.safetensors nor {INDEX}; other formats have to be converted "
        "to safetensors first."
    )


def test_damaged_files_are_named(folder: Path):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError) as caught:
        models.load(folder)
    assert str(caught.value).startswith(f"{file} cannot be read: ")
    assert str(caught.value).endswith("; download it again.")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON: .*; download it again\."):
        models.load(folder)


def test_a_missing_shard_is_named(tmp_path: Path):
    folder = tiny.write_shards(tmp_path, tiny.SETTINGS, WEIGHTS)
    gone = folder / "model-00002-of-00003.safetensors"
    gone.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        models.load(folder)
    assert str(caught.value) == f"{gone} is not there, though {INDEX} names it; download it again."


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path: Path):
    folder = tiny.write_shards(tmp_path, tiny.SETTINGS, WEIGHTS)
    first = folder / "model-00001-of-00003.safetensors"
    save_file({"other": np.ones(2, np.float32)}, first)
    with pytest.raises(ValueError, match=r"weight cannot be read from .*; download the file again"):
        models.load(folder)


def test_an_index_may_not_point_elsewhere(tmp_path: Path):
    folder = tiny.write_shards(tmp_path / "model", tiny.SETTINGS, WEIGHTS)
    shutil.move(folder / "model-00001-of-00003.safetensors", tmp_path / "other.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][V_PROJ] = "../other.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError) as caught:
        models.load(folder)
    assert str(caught.value) == (
        f"{folder / INDEX} places {V_PROJ} in '../other.safetensors'; it has to be a file beside "
        "it."
    )
