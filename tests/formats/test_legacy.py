"""Files of compressed-tensors, written here by numpy as its documentation describes them."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxprune import formats


def bit_rows(mask: np.ndarray) -> np.ndarray:
    """Bits of each row, the first column lowest, without numpy's own packing."""
    padded = np.pad(mask, ((0, 0), (0, -mask.shape[1] % 8))).astype(np.uint8)
    return (padded.reshape(len(mask), -1, 8) << np.arange(8, dtype=np.uint8)).sum(
        -1, dtype=np.uint8
    )


def bitmask(w: np.ndarray) -> dict[str, np.ndarray]:
    mask = w.astype(np.float32) != 0
    ends = np.cumsum(mask.sum(1))
    return {
        "compressed": np.concatenate([row[kept] for row, kept in zip(w, mask, strict=True)]),
        "bitmask": bit_rows(mask),
        "shape": np.array(w.shape, np.int64),
        "row_offsets": np.concatenate([[0], ends[:-1]]).astype(np.int64),
    }


def bitmask24(w: np.ndarray) -> dict[str, np.ndarray]:
    """Two largest of each four along a row, as the writer chose them, zeros among them or not."""
    groups = np.abs(w.astype(np.float32)).reshape(len(w), -1, 4)
    order = np.argsort(-groups, axis=-1, kind="stable")
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order[..., :2], True, -1)
    mask = mask.reshape(w.shape)
    return {
        "compressed": w[mask].reshape(len(w), -1),
        "bitmask": bit_rows(mask),
        "shape": np.array(w.shape, np.int64).reshape(-1, 1),
    }


def sparse(shape: tuple[int, int], dtype: Any, rng: np.random.Generator) -> np.ndarray:
    """One or two of each four."""
    keep = np.argsort(rng.random((shape[0], shape[1] // 4, 4)), -1) < 2
    keep[0, 0] = [True, False, False, False]
    return np.where(keep.reshape(shape), rng.normal(size=shape), 0).astype(dtype)


def test_both_layouts_are_read(rng: np.random.Generator, tmp_path: Path):
    a, b = sparse((6, 12), ml_dtypes.bfloat16, rng), sparse((5, 20), ml_dtypes.float8_e4m3fn, rng)
    tensors = {f"model.a.{part}": array for part, array in bitmask24(a).items()}
    tensors |= {f"model.b.weight.{part}": array for part, array in bitmask(b).items()}
    tensors["model.norm.weight"] = np.ones(3, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    got = formats.load_compressed(tmp_path / "model.safetensors")
    assert sorted(got) == ["model.a.weight", "model.b.weight", "model.norm.weight"]
    assert isinstance(got["model.a.weight"], formats.NMSparse)
    assert isinstance(got["model.b.weight"], formats.Bitmap)
    for name, want in (("model.a.weight", a), ("model.b.weight", b)):
        dense = np.asarray(got[name].todense())
        assert dense.dtype == want.dtype
        np.testing.assert_array_equal(dense.T.astype(np.float32), want.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"shape": None}, "has no tensor 'shape', without which it cannot be read."),
        (
            {"bitmask": np.zeros((2, 2), np.uint8)},
            "has shape (4, 8) and a bitmask of shape (2, 2); a matrix [out, in] has a bitmask "
            "[out, ceil(in / 8)].",
        ),
        (
            {"compressed": np.ones(3, np.float32)},
            "has 3 values, but its bitmask keeps 16: the file is damaged, or of another layout.",
        ),
        (
            {"row_offsets": np.arange(4)},
            ": its row_offsets are not where the rows of its bitmask begin: the file is damaged, "
            "or of another layout.",
        ),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], text: str, tmp_path: Path):
    w = np.tile(np.array([1, 0, 2, 0], np.float32), (4, 2))
    parts = {**bitmask(w), **change}
    path = tmp_path / "model.safetensors"
    save_file({f"lin.{part}": x for part, x in parts.items() if x is not None}, path)
    with pytest.raises(ValueError) as error:
        formats.load_compressed(path)
    assert str(error.value) == f"{path}: 'lin'{' ' * (text[0] != ':')}{text}"


def test_a_part_of_a_format_that_is_missing_is_named(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    formats.save_file({"w": formats.Bitmap.from_dense(np.eye(2, dtype=np.float32))}, path)
    tensors, metadata = formats.files.read_tensors(path)
    save_file({"w.bits": np.asarray(tensors["w.bits"])}, path, metadata=metadata)
    with pytest.raises(ValueError) as error:
        formats.load_file(path)
    assert str(error.value) == f"{path} has no w.values, parts of 'w'; copy it anew."


def test_two_tensors_of_one_name_are_refused(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    weights = {"w": formats.Bitmap.from_dense(np.eye(2, dtype=np.float32)), "w.bits": np.ones(2)}
    with pytest.raises(ValueError) as error:
        formats.save_file(weights, path)
    assert str(error.value) == f"two tensors of {path} have one name: 'w.bits'. Rename one."
