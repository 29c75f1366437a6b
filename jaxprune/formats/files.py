"""Compressed weights in safetensors files."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors import numpy as tensors_of

from jaxprune.formats.bitmap import Bitmap
from jaxprune.formats.block import BlockSparse
from jaxprune.formats.layouts import PLAIN, Plain
from jaxprune.formats.nm import NMSparse

_KEY = "jaxprune.formats"  # of the metadata, which says what the tensors make up
_DENSE_DTYPE = "dense_dtype"
_ARRAYS: dict[type[Any], Sequence[str]] = {
    NMSparse: Plain._fields,
    BlockSparse: ("data", "rows", "columns", "starts", "by_row", "row_starts", "count"),
    Bitmap: ("values", "bits"),
}  # and a scale, if the values are quantised
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    **{f"{kind}{bits}": f"{kind.lower()}{bits // 8}" for kind in "IU" for bits in (8, 16, 32, 64)},
    "BOOL": np.bool_,
}


def save_file(weights: Mapping[str, Any], path: str | Path) -> None:
    """Write arrays and compressed weights into one safetensors file.

    A format's arrays stand under ``name.part``; what they make up, in the metadata. `NMSparse` is
    written in the plain layout, whatever its own. A file that is there is replaced at the end.

    Args:
      weights: ``{name: array or format}``; no name may begin with another and a dot.
      path: of the file.

    Raises:
      ValueError: two tensors would have one name.

    Example:
      >>> import jax.numpy as jnp
      >>> import pathlib, tempfile
      >>> from jaxprune import formats
      >>> w = formats.Bitmap.from_dense(jnp.eye(3))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "model.safetensors")
      ...     formats.save_file({"kernel": w, "bias": jnp.ones(3)}, path)
      ...     read = formats.load_file(path)
      >>> read["kernel"], bool((read["kernel"].todense() == jnp.eye(3)).all())
      (Bitmap([3, 3], float32, 3 values), True)
    """
    told, tensors = {}, {}
    for name, weight in weights.items():
        parts, settings = _parts(weight)
        if settings is not None:
            told[name] = settings
        for part, array in parts.items():
            full = f"{name}.{part}" if part else name
            if full in tensors:
                raise ValueError(f"two tensors of {path} have one name: {full!r}. Rename one.")
            tensors[full] = np.require(array, requirements="C")
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    tensors_of.save_file(tensors, partial, metadata={_KEY: json.dumps(told)})
    os.replace(partial, path)


def load_file(path: str | Path) -> dict[str, Any]:
    """Read what `save_file` wrote; any other safetensors file comes back as arrays.

    Args:
      path: of the file.

    Returns:
      ``{name: array or format}``.

    Raises:
      ValueError: the file is broken, or tensors of a format are missing.

    Example:
      >>> import jax.numpy as jnp
      >>> import pathlib, tempfile
      >>> from jaxprune import formats
      >>> w = jnp.zeros((4, 4)).at[0].set(1.0)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "model.safetensors")
      ...     formats.save_file({"w": formats.NMSparse.from_dense(w, n=1, m=4)}, path)
      ...     print(formats.load_file(path))
      {'w': NMSparse([4, 4], float32, 1:4)}
    """
    tensors, metadata = read_tensors(path)
    found = {}
    for name, settings in json.loads(metadata.get(_KEY, "{}")).items():
        kind = {cls.__name__: cls for cls in _ARRAYS}[settings["format"]]
        names = [*_ARRAYS[kind], *(["scale"] if _DENSE_DTYPE in settings else [])]
        parts = {part: f"{name}.{part}" for part in names}
        missing = sorted(set(parts.values()) - set(tensors))
        if missing:
            raise ValueError(
                f"{path} has no {', '.join(missing)}, parts of {name!r}; copy it anew."
            )
        arrays = {part: tensors.pop(full) for part, full in parts.items()}
        static = {key: value for key, value in settings.items() if key != "format"}
        if _DENSE_DTYPE in static:
            static[_DENSE_DTYPE] = jnp.dtype(static[_DENSE_DTYPE])
        if kind is NMSparse:
            plain = Plain(*(arrays.pop(part) for part in Plain._fields))
            arrays = {"packed": plain, **arrays}
        found[name] = kind(**arrays, **static)
    return {**tensors, **found}


def read_tensors(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors of a safetensors file, and its metadata.

    Raises:
      ValueError: the file is broken.
    """
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:  # checks all offsets
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is no complete safetensors file: {error}. Copy it anew."
        ) from None
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    header.pop("__metadata__", None)
    return {name: _tensor(path, start, **told) for name, told in header.items()}, metadata


def _tensor(
    path: str | Path, start: int, dtype: str, shape: list[int], data_offsets: list[int]
) -> jax.Array:
    """Return one tensor; safetensors' own reader for numpy has no floats of 8 bits."""
    begin, end = data_offsets
    data = np.fromfile(path, np.uint8, end - begin, offset=start + begin)
    return jnp.asarray(data.view(_DTYPES[dtype]).reshape(shape))


def _parts(weight: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the arrays of a weight by name, and what else makes it up; None for an array."""
    if not isinstance(weight, NMSparse | BlockSparse | Bitmap):
        return {"": weight}, None
    told: dict[str, Any] = {"format": type(weight).__name__}
    if isinstance(weight, NMSparse):
        told |= {"n": weight.n, "m": weight.m}
        arrays = weight.relaid(PLAIN).packed._asdict()
    else:
        arrays = {name: getattr(weight, name) for name in _ARRAYS[type(weight)]}
    if isinstance(weight, Bitmap):
        told["columns"] = weight.columns
    if weight.scale is not None:
        arrays["scale"] = weight.scale
        told[_DENSE_DTYPE] = weight.dtype.name
    return arrays, told
