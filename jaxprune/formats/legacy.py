"""Readers for the layouts ``sparse-bitmask`` and ``sparse-24-bitmask`` of compressed-tensors.

Checkpoints of language models were written in them; the library that wrote them has dropped its
readers. A weight ``[out, in]`` is stored as the tensors

- ``compressed``: the kept values, row by row; of 2:4 as ``[out, in / 2]``,
- ``bitmask``: uint8 ``[out, ceil(in / 8)]``, the first column in the lowest bit,
- ``shape``: ``[out, in]``, flat or as a column,
- ``row_offsets``: where each row's values begin; not of 2:4, whose rows have one length,

under the module's name or the weight's.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.formats.bitmap import Bitmap
from jaxprune.formats.files import read_tensors
from jaxprune.formats.nm import NMSparse

_VALUES, _BITS, _SHAPE, _OFFSETS = "compressed", "bitmask", "shape", "row_offsets"


def load_compressed(path: str | Path) -> dict[str, Any]:
    """Read a safetensors file of the layouts ``sparse-bitmask`` and ``sparse-24-bitmask``.

    Args:
      path: of one safetensors file; of a checkpoint in shards, call it for each.

    Returns:
      ``{name: weight}``: compressed weights under ``module.weight``, `NMSparse` 2:4 or `Bitmap`, as
      ``[in, out]``: the transposed of what torch calls the weight. All other tensors are arrays, as
      they are stored.

    Raises:
      ValueError: a part is missing, or the parts contradict each other.

    Example:
      >>> import numpy as np
      >>> import pathlib, tempfile
      >>> from safetensors.numpy import save_file
      >>> from jaxprune import formats
      >>> parts = {
      ...     "lin.compressed": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32),
      ...     "lin.bitmask": np.array([[0b0101], [0b1010]], np.uint8),
      ...     "lin.shape": np.array([[2], [4]]),
      ... }
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "model.safetensors")
      ...     save_file(parts, path)
      ...     read = formats.load_compressed(path)
      >>> read
      {'lin.weight': NMSparse([4, 2], float32, 2:4)}
      >>> read["lin.weight"].todense().T.tolist()
      [[1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, 4.0]]
    """
    tensors, _ = read_tensors(path)
    suffix = f".{_VALUES}"
    bases = [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]
    bases = [base for base in bases if f"{base}.{_BITS}" in tensors]
    found = {}
    for base in bases:
        parts = {p: tensors.pop(f"{base}.{p}", None) for p in (_VALUES, _BITS, _SHAPE, _OFFSETS)}
        name = base if base.endswith(".weight") else f"{base}.weight"
        found[name] = _weight(f"{path}: {base!r}", name, parts)
    return {**tensors, **found}


def _weight(what: str, name: str, parts: dict[str, Any]) -> NMSparse | Bitmap:
    if parts[_SHAPE] is None:
        raise ValueError(f"{what} has no tensor {_SHAPE!r}, without which it cannot be read.")
    shape = tuple(int(size) for size in np.asarray(parts[_SHAPE]).reshape(-1))
    values, bits = np.asarray(parts[_VALUES]), np.asarray(parts[_BITS])
    if len(shape) != 2 or bits.shape != (shape[0], -(-shape[1] // 8)):
        raise ValueError(
            f"{what} has shape {shape} and a bitmask of shape {bits.shape}; a matrix [out, in] has "
            "a bitmask [out, ceil(in / 8)]."
        )
    mask = np.unpackbits(bits, axis=-1, count=shape[1], bitorder="little").astype(bool)
    _check(what, mask, values, parts[_OFFSETS])
    dense = np.zeros(shape, values.dtype)
    dense[mask] = values.reshape(-1)
    w, kept = jnp.asarray(dense.T), jnp.asarray(mask.T)
    if parts[_OFFSETS] is None and values.ndim == 2:
        return NMSparse.from_dense(w, kept, n=2, m=4, path=name)
    return Bitmap.from_dense(w, kept, path=name)


def _check(what: str, mask: np.ndarray, values: np.ndarray, offsets: jax.Array | None) -> None:
    counts = mask.sum(-1)
    if counts.sum() != values.size:
        raise ValueError(
            f"{what} has {values.size} values, but its bitmask keeps {counts.sum()}: the file is "
            "damaged, or of another layout."
        )
    if offsets is not None:
        begin = np.cumsum(counts) - counts
        if not np.array_equal(np.asarray(offsets).reshape(-1), begin):
            raise ValueError(
                f"{what}: its row_offsets are not where the rows of its bitmask begin: the file is "
                "damaged, or of another layout."
            )
