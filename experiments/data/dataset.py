"""What every source of data hands over, and the errors that say why it does not."""

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np


class Arrays(NamedTuple):
    """The four arrays of an image classification dataset."""

    train_images: np.ndarray  # [N, H, W, C] uint8
    train_labels: np.ndarray  # [N] int32
    test_images: np.ndarray  # [M, H, W, C] uint8
    test_labels: np.ndarray  # [M] int32


class Attempt(NamedTuple):
    """A source that was tried, and why it did not serve."""

    source: str
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in memory, with where they came from."""

    name: str  # the dataset that was had, which may be a stand-in for the one asked for
    train_images: np.ndarray  # [N, H, W, C] uint8
    train_labels: np.ndarray  # [N] int32
    test_images: np.ndarray  # [M, H, W, C] uint8
    test_labels: np.ndarray  # [M] int32
    num_classes: int
    source: str
    sha256: str  # of the four arrays above, in that order
    passed_over: tuple[Attempt, ...] = ()


class SourceError(Exception):
    """This source cannot serve the dataset; the text is the reason that the user is shown."""


class DatasetUnavailableError(RuntimeError):
    """No source could serve the dataset."""


class DamagedCacheError(RuntimeError):
    """Data that was prepared before reads back different."""


def sha256_of(arrays: Arrays) -> str:
    """Return the hex digest over shapes, types and bytes of the four arrays, in their order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def listed(attempts: tuple[Attempt, ...]) -> str:
    """Write one line per attempt, for errors and warnings."""
    return "\n".join(f"  - {source}: {reason}" for source, reason in attempts)
