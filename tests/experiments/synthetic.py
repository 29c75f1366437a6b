"""A tiny dataset in the forms in which real ones come."""

import hashlib
from collections.abc import Mapping

import numpy as np

from experiments.data import idx
from experiments.data.dataset import Arrays

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 4), np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 10
ARRAYS = Arrays(
    IMAGES[..., None],
    LABELS.astype(np.int32),
    IMAGES[:5, ..., None],
    LABELS[:5].astype(np.int32),
)


def as_idx(array: np.ndarray) -> bytes:
    """Write an array of bytes as an IDX file."""
    header = bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def idx_files() -> dict[str, bytes]:
    """Return the four files of the tiny dataset."""
    return {
        idx.TRAIN_IMAGES: as_idx(IMAGES),
        idx.TRAIN_LABELS: as_idx(LABELS),
        idx.TEST_IMAGES: as_idx(IMAGES[:5]),
        idx.TEST_LABELS: as_idx(LABELS[:5]),
    }


def sums(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the sha256 of each file."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
