"""The IDX files in which MNIST and its successors are distributed."""

import gzip
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.data.dataset import Arrays, SourceError

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

# sha256 of the uncompressed files: packages gzip the same bytes in different ways.
FASHION_MNIST = {
    TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
MNIST = {
    TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def parse(content: bytes, name: str) -> np.ndarray:
    """Read one IDX file of unsigned bytes: two zeros, 0x08, the rank, big-endian sizes, data."""
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise SourceError(f"{name} is not an IDX file of bytes: it begins with {content[:4]!r}")
    rank = content[3]
    start = 4 + 4 * rank
    if len(content) < start:
        raise SourceError(f"{name} ends within its header of {start} bytes")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", rank, 4))
    if len(content) - start != math.prod(shape):
        raise SourceError(f"{name} says shape {shape}, but holds {len(content) - start} bytes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def verify(content: bytes, expected: str, name: str) -> bytes:
    """Return `content` if its sha256 is the expected one, or raise."""
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise SourceError(f"{name} has sha256 {found}, but {expected} was expected: refused")
    return content


def read_file(folder: Path, name: str) -> bytes:
    """Read `name` or `name.gz` in a folder, uncompressed."""
    plain, packed = folder / name, folder / f"{name}.gz"
    try:
        return plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError) as error:
        raise SourceError(f"cannot read {name} in {folder}: {error}") from error


def assemble(contents: Mapping[str, bytes], expected: Mapping[str, str]) -> Arrays:
    """Verify and parse the four files; images get their channel axis, labels become int32."""
    parsed = {n: parse(verify(contents[n], expected[n], n), n) for n in FILES}
    return Arrays(
        parsed[TRAIN_IMAGES][..., None],
        parsed[TRAIN_LABELS].astype(np.int32),
        parsed[TEST_IMAGES][..., None],
        parsed[TEST_LABELS].astype(np.int32),
    )
