"""GGUF files: their metadata, and the weights of a Llama, dequantised."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxprune.models.config import LlamaConfig

_MAGIC = b"GGUF"
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9

# Names of a block's tensors, in a GGUF file and in a Hugging Face checkpoint.
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class _Entry(NamedTuple):
    """Where a tensor lies."""

    shape: tuple[int, ...]  # slowest axis first, as in numpy
    kind: int  # of quantisation
    offset: int  # from the start of the data


class File(NamedTuple):
    """A GGUF file, its tensors not yet read."""

    path: Path
    metadata: dict[str, Any]
    entries: dict[str, _Entry]
    start: int  # byte at which the data begins


def open_file(path: Path) -> File:
    """Read the metadata and the list of tensors.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no GGUF file of version 2 or 3, or is cut short.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there.")
    cursor = _Cursor(np.memmap(path, np.uint8, mode="r"))
    if cursor.take(4) != _MAGIC:
        raise ValueError(f"{path} is no GGUF file: it does not begin with {_MAGIC.decode()}.")
    version = cursor.number("I")
    if version not in (2, 3):
        raise ValueError(f"{path} has GGUF version {version}; 2 and 3 are supported.")
    try:
        tensors, pairs = cursor.number("Q"), cursor.number("Q")
        metadata = {cursor.text(): cursor.value(cursor.number("I")) for _ in range(pairs)}
        entries = dict(_entry(cursor) for _ in range(tensors))
    except struct.error as error:
        raise ValueError(f"{path} is cut short: {error}; fetch it again.") from error
    align = metadata.get("general.alignment", 32)
    return File(path, metadata, entries, -(-cursor.at // align) * align)


def read_model(path: Path) -> tuple[LlamaConfig, Callable[[str], np.ndarray]]:
    """Return the configuration, and a reader of tensors by their Hugging Face names.

    The file holds the rows of query and key projections in the order of interleaved rotary pairs.
    They are put back into Hugging Face's order, where a pair is two halves of a head.

    Raises:
      ValueError: if the file is no Llama, or holds tensors that would be passed over.
    """
    file = open_file(path)
    config = _config(file)
    names = _hf_names(config)
    unknown = sorted(set(file.entries) - set(names.values()))
    if unknown:
        raise ValueError(f"{path} holds tensors that a Llama does not have: {', '.join(unknown)}.")

    def read(name: str) -> np.ndarray:
        if names[name] not in file.entries:
            raise ValueError(f"{path} holds no tensor {names[name]}.")
        array = _tensor(file, names[name])
        if name.endswith("q_proj.weight"):
            return _halves(array, config.num_attention_heads)
        if name.endswith("k_proj.weight"):
            return _halves(array, config.num_key_value_heads)
        return array

    return config, read


def _config(file: File) -> LlamaConfig:
    meta = file.metadata
    if meta.get("general.architecture") != "llama":
        raise ValueError(
            f"{file.path} has architecture {meta.get('general.architecture')!r}; allowed: llama."
        )
    if meta.get("llama.rope.scaling.type", "none") != "none":
        raise ValueError(f"{file.path} scales its rotary frequencies, which is not supported.")
    heads, width = meta["llama.attention.head_count"], meta["llama.embedding_length"]
    end = meta.get("tokenizer.ggml.eos_token_id")
    return LlamaConfig(
        vocab_size=file.entries["token_embd.weight"].shape[0],
        hidden_size=width,
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=meta.get("llama.attention.head_count_kv", heads),
        head_dim=meta.get("llama.attention.key_length", width // heads),
        rms_norm_eps=meta["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=meta.get("llama.rope.freq_base", 10_000.0),
        max_position_embeddings=meta["llama.context_length"],
        tie_word_embeddings="output.weight" not in file.entries,
        bos_token_id=meta.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=() if end is None else (end,),
    )


def _hf_names(config: LlamaConfig) -> dict[str, str]:
    """Return the name in the file of each tensor by its Hugging Face name."""
    names = {f"{theirs}.weight": f"{ours}.weight" for ours, theirs in _ENDS.items()}
    for i in range(config.num_hidden_layers):
        names |= {f"model.layers.{i}.{b}.weight": f"blk.{i}.{a}.weight" for a, b in _BLOCK.items()}
    return names


def _halves(array: np.ndarray, heads: int) -> np.ndarray:
    """Put rows (head, pair, 2), interleaved, in the order (head, 2, pair)."""
    out, width = array.shape
    return array.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


class _Cursor:
    """A place in the file, which moves on as values are taken."""

    def __init__(self, data: np.ndarray):
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if len(piece) < count:
            raise struct.error(f"{count} bytes are wanted at {self.at} of {len(self.data)}")
        self.at += count
        return piece.tobytes()

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            return [self.value(inner) for _ in range(count)]
        return self.number(_SCALARS[kind])


def _entry(cursor: _Cursor) -> tuple[str, _Entry]:
    name = cursor.text()
    sizes = [cursor.number("Q") for _ in range(cursor.number("I"))]
    return name, _Entry(tuple(reversed(sizes)), cursor.number("I"), cursor.number("Q"))


def _tensor(file: File, name: str) -> np.ndarray:
    """Return a tensor as float32, or in its own dtype if it is not quantised."""
    shape, kind, offset = file.entries[name]
    if kind not in _KINDS:
        raise ValueError(
            f"{name} in {file.path} has GGUF type {kind}; supported: F32, F16, BF16, Q4_0, Q4_1, "
            "Q8_0. Requantise the file to one of them."
        )
    weights, width, decode = _KINDS[kind]
    count = int(np.prod(shape)) // weights * width
    data = np.memmap(file.path, np.uint8, mode="r")[file.start + offset :][:count]
    if len(data) < count:
        raise ValueError(f"{file.path} is cut short in {name}; fetch it again.")
    return decode(data.reshape(-1, width)).reshape(shape)


def _plain(dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: rows.view(dtype).astype(np.float32)


def _float16(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows).view(np.float16).astype(np.float32)


def _nibbles(rows: np.ndarray) -> np.ndarray:
    """Return the 32 values of each row of 16 bytes: the low halves, then the high ones."""
    return np.concatenate([rows & 15, rows >> 4], axis=1).astype(np.float32)


def _q4_0(rows: np.ndarray) -> np.ndarray:
    """``scale · (q − 8)``, rows of a float16 scale and 32 nibbles."""
    return _float16(rows[:, :2]) * (_nibbles(rows[:, 2:]) - 8)


def _q4_1(rows: np.ndarray) -> np.ndarray:
    """``scale · q + least``, rows of two float16 and 32 nibbles."""
    return _float16(rows[:, :2]) * _nibbles(rows[:, 4:]) + _float16(rows[:, 2:4])


def _q8_0(rows: np.ndarray) -> np.ndarray:
    """``scale · q``, rows of a float16 scale and 32 signed bytes."""
    return _float16(rows[:, :2]) * rows[:, 2:].view(np.int8).astype(np.float32)


# By GGUF's number of the type: weights and bytes of a row, and how a row is decoded.
_KINDS: dict[int, tuple[int, int, Callable[[np.ndarray], np.ndarray]]] = {
    0: (1, 4, _plain(np.float32)),
    1: (1, 2, _plain(np.float16)),
    2: (32, 18, _q4_0),
    3: (32, 20, _q4_1),
    8: (32, 34, _q8_0),
    30: (1, 2, _plain(ml_dtypes.bfloat16)),
}
