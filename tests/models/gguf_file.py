"""Write a GGUF file, independently of the reader: version 3, little endian."""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np


class Tensor(NamedTuple):
    """A tensor as it lies in the file, and the values that a reader should find."""

    kind: int
    data: bytes
    values: np.ndarray


def plain(array: np.ndarray, kind: int) -> Tensor:
    dtype = {0: np.float32, 1: np.float16, 30: ml_dtypes.bfloat16}[kind]
    stored = array.astype(dtype)
    return Tensor(kind, stored.tobytes(), stored.astype(np.float32))


def quantised(rng: np.random.Generator, shape: tuple[int, int], kind: int) -> Tensor:
    """Random blocks of 32 weights; each weight is computed alone, from the format's formula."""
    data, values = b"", []
    for _ in range(shape[0] * shape[1] // 32):
        scale, least = (float(np.float16(x)) for x in rng.normal(0, 0.05, 2))
        head = struct.pack("<e", scale)
        if kind == 8:
            numbers = rng.integers(-127, 128, 32)
            data += head + struct.pack("<32b", *numbers)
            values += [np.float32(scale) * np.float32(q) for q in numbers]
            continue
        numbers = rng.integers(0, 16, 32)
        packed = bytes(int(numbers[j]) | int(numbers[j + 16]) << 4 for j in range(16))
        if kind == 3:
            data += head + struct.pack("<e", least) + packed
            values += [np.float32(scale) * np.float32(q) + np.float32(least) for q in numbers]
        else:
            data += head + packed
            values += [np.float32(scale) * np.float32(int(q) - 8) for q in numbers]
    return Tensor(kind, data, np.array(values, np.float32).reshape(shape))


def write(path: Path, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += _text(key) + _value(value)
    body = b""
    for name, tensor in tensors.items():
        sizes = tensor.values.shape[::-1]
        head += _text(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        head += struct.pack("<IQ", tensor.kind, len(body))
        body += tensor.data + bytes(-len(tensor.data) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + body)
    return path


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    match value:
        case str():
            return struct.pack("<I", 8) + _text(value)
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case [*items]:
            inner = [_value(item) for item in items]
            return (
                struct.pack("<I", 9)
                + inner[0][:4]
                + struct.pack("<Q", len(items))
                + b"".join(item[4:] for item in inner)
            )
    raise TypeError(value)
