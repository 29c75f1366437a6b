"""Hugging Face checkpoints: a folder with config.json and safetensors, read and written."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from safetensors.numpy import save_file

from jaxprune._core import paths
from jaxprune.models import gguf
from jaxprune.models.config import LlamaConfig
from jaxprune.models.layout import from_hf, hf_name, parameter_shapes, to_hf
from jaxprune.types import Tree

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Buffers that old checkpoints hold, and the head of a model that ties it.
_IGNORED = ("rotary_emb.inv_freq", "lm_head.weight")


class Pretrained(NamedTuple):
    """A model that was read from disk.

    Attributes:
      config: its shape.
      params: its parameters, a dict of dicts.
    """

    config: LlamaConfig
    params: Tree


def load(path: str | Path, *, dtype: Any = None, stacked: bool = False) -> Pretrained:
    """Read a model of the Llama family: a Hugging Face folder, or a GGUF file.

    A folder holds ``config.json`` and ``model.safetensors``, or shards and their index. A GGUF file
    is dequantised to float32. Kernels are transposed to (in, out), and rotary pairs are halves of
    a head, whatever the file has. Run it under ``jax.default_matmul_precision("highest")`` on a GPU
    if figures are to be compared with a CPU's.

    Args:
      path: of the folder or the ``.gguf`` file.
      dtype: of the parameters; the file's by default.
      stacked: whether to stack the blocks along a leading layer axis, which compiles faster.

    Returns:
      The configuration and the parameters, on the default device.

    Raises:
      FileNotFoundError: if the folder, or a file that it should hold, is not there.
      ValueError: if the model is of another family, a file is damaged, or a tensor is missing,
        unknown, or of another shape than the configuration says.

    Example:
      >>> import jax, pathlib, tempfile
      >>> from jaxprune import models
      >>> config = models.LlamaConfig(
      ...     vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
      ...     num_attention_heads=4, num_key_value_heads=2, head_dim=16)
      >>> params = models.init_llama(config, jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     models.save(folder, config, params)
      ...     print(*sorted(file.name for file in pathlib.Path(folder).iterdir()))
      ...     again = models.load(folder)
      config.json model.safetensors
      >>> again.config == config
      True
      >>> bool((again.params["lm_head"]["kernel"] == params["lm_head"]["kernel"]).all())
      True
    """
    path = Path(path)
    if path.suffix == ".gguf":
        config, tensors = gguf.read_model(path)
        return Pretrained(config, from_hf(config, tensors, dtype=dtype, stacked=stacked))
    config = LlamaConfig.from_hf(_json(path / CONFIG))
    tensors = _Tensors(path)
    tensors.check(config)
    return Pretrained(config, from_hf(config, tensors.read, dtype=dtype, stacked=stacked))


def save(
    path: str | Path,
    config: LlamaConfig,
    params: Tree,
    *,
    tokenizer: Any = None,
    overwrite: bool = False,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a model as a Hugging Face folder, which transformers and others read.

    Pruned weights are written as zeros. The configuration is written last: a folder without
    ``config.json`` is what an interrupted call left, and the next one replaces it.

    Args:
      path: of the folder; made if it is not there. Other files in it are left alone.
      config: shape of the model.
      params: its parameters, stacked or not, written in their own dtype.
      tokenizer: from ``load_tokenizer``; written as ``tokenizer.json``.
      overwrite: whether to replace a model that the folder already holds.
      shard_bytes: a larger model is divided into files of at most this size, but for a tensor that
        is larger alone.

    Raises:
      FileExistsError: if the folder holds a model and ``overwrite`` is False.
      ValueError: if the parameters are not those of the configuration.

    Example:
      See ``load``.

      >>> import jax
      >>> from jaxprune import models
      >>> config = models.LlamaConfig(
      ...     vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
      ...     num_attention_heads=4, num_key_value_heads=2, head_dim=16)
      >>> models.save("pruned", config, {"lm_head": {"kernel": jax.numpy.ones((64, 256))}})
      Traceback (most recent call last):
        ...
      ValueError: params do not fit the configuration: missing ...
    """
    folder = Path(path)
    shards = _shards(config, params, shard_bytes)
    if (folder / CONFIG).exists() and not overwrite:
        raise FileExistsError(
            f"{folder} already holds a model; pass overwrite=True to replace it, or another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / CONFIG, folder / INDEX, *folder.glob("model*.safetensors")):
        old.unlink(missing_ok=True)
    dtype, index = _write_shards(folder, shards, to_hf(config, params))
    if len(shards) > 1:
        _write_json(folder / INDEX, index)
    if tokenizer is not None:
        _write_tokenizer(folder, config, tokenizer)
    _write_json(folder / CONFIG, config.to_hf() | {"torch_dtype": dtype})


class _Tensors:
    """The tensors of a folder by name, over all its files."""

    def __init__(self, folder: Path):
        self.folder = folder
        if (folder / INDEX).exists():
            self.file_of = _index(folder / INDEX)
        elif (folder / SINGLE).exists():
            with _open(folder / SINGLE) as file:
                self.file_of = dict.fromkeys(file.keys(), SINGLE)
        else:
            raise FileNotFoundError(
                f"{folder} holds neither {SINGLE} nor {INDEX}; other formats have to be converted "
                "to safetensors first."
            )

    def check(self, config: LlamaConfig) -> None:
        """Raise a ``ValueError`` if a tensor is missing or would be passed over."""
        want = {hf_name(path) for path in parameter_shapes(config)}
        have = {name for name in self.file_of if name in want or not name.endswith(_IGNORED)}
        missing, unknown = sorted(want - have), sorted(have - want)
        if missing or unknown:
            raise ValueError(
                f"the tensors in {self.folder} are not those of its config.json: missing "
                f"{paths.listed(missing) or 'none'}; unknown {paths.listed(unknown) or 'none'}."
            )

    def read(self, name: str) -> np.ndarray:
        with _open(self.folder / self.file_of[name]) as file:
            try:
                return file.get_tensor(name)
            except safetensors.SafetensorError as error:
                raise ValueError(
                    f"{name} cannot be read from {self.folder / self.file_of[name]}: {error}; "
                    "download the file again."
                ) from error


def _open(path: Path) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there, though {INDEX} names it; download it again.")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}; download it again.") from error


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there; a model is a folder with {CONFIG} and safetensors, or a .gguf "
            "file."
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; download it again.") from error


def _index(path: Path) -> dict[str, str]:
    file_of = _json(path)["weight_map"]
    for name, file in file_of.items():
        if Path(file).name != file:
            raise ValueError(f"{path} places {name} in {file!r}; it has to be a file beside it.")
    return file_of


def _shards(config: LlamaConfig, params: Tree, shard_bytes: int) -> list[list[str]]:
    """Divide the names into files, in order, from the sizes alone."""
    itemsize = max(leaf.dtype.itemsize for leaf in paths.flatten(params).values())
    shards: list[list[str]] = [[]]
    filled = 0
    for path, shape in parameter_shapes(config).items():
        size = int(np.prod(shape)) * itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(hf_name(path))
        filled += size
    return shards


def _write_shards(
    folder: Path, shards: list[list[str]], tensors: Iterable[tuple[str, np.ndarray]]
) -> tuple[str, dict[str, Any]]:
    """Write the files, one in memory at a time; return the dtype and the index."""
    left = iter(tensors)
    weight_map: dict[str, str] = {}
    total, dtype = 0, "float32"
    for number, names in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        held = dict(next(left) for _ in names)
        assert list(held) == names
        weight_map |= dict.fromkeys(names, name)
        total += sum(array.nbytes for array in held.values())
        dtype = str(held[names[0]].dtype)
        partial = folder / f".{name}.partial"
        save_file(held, partial, metadata={"format": "pt"})
        os.replace(partial, folder / name)
    return dtype, {"metadata": {"total_size": total}, "weight_map": weight_map}


def _write_tokenizer(folder: Path, config: LlamaConfig, tokenizer: Any) -> None:
    ids = {"bos_token": config.bos_token_id, "eos_token": next(iter(config.eos_token_ids), None)}
    known = {name: tokenizer.id_to_token(i) for name, i in ids.items() if i is not None}
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json", known | {"tokenizer_class": "PreTrainedTokenizerFast"}
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, path)
