"""Bytes of a pruned weight in compressed formats, estimated from the formats' layout."""

import math

import numpy as np

from jaxprune.patterns import NM, Block, Channel
from jaxprune.types import Pattern

_INDEX = 4  # bytes of an int32


def smallest(mask: np.ndarray, itemsize: int, pattern: Pattern | None) -> int:
    """Return the bytes of the smallest format that applies.

    Args:
      mask: boolean array, True = kept.
      itemsize: bytes of one value.
      pattern: the pattern that the mask obeys, or None.

    Returns:
      The least of dense, bitmap, and the pattern's own format.
    """
    sizes = [mask.size * itemsize, bitmap(mask, itemsize)]
    if isinstance(pattern, NM):
        sizes.append(n_of_m(mask, itemsize, pattern))
    if isinstance(pattern, Block):
        sizes.append(blocks(mask, itemsize, pattern))
    if isinstance(pattern, Channel):
        sizes.append(channels(mask, itemsize, pattern))
    return min(sizes)


def bitmap(mask: np.ndarray, itemsize: int) -> int:
    """Return the bytes of the kept values and one bit a weight."""
    return int(np.count_nonzero(mask)) * itemsize + -(-mask.size // 8)


def n_of_m(mask: np.ndarray, itemsize: int, pattern: NM) -> int:
    """Return the bytes of n values a group and ``⌈log2 m⌉`` bits for the place of each."""
    length = math.prod(mask.shape[axis] for axis in pattern.axes)
    values = pattern.n * -(-length // pattern.m) * (mask.size // max(length, 1))
    return values * itemsize + -(-values * (pattern.m - 1).bit_length() // 8)


def blocks(mask: np.ndarray, itemsize: int, pattern: Block) -> int:
    """Return the bytes of whole kept blocks and an int32 index for each."""
    kept = mask
    for axis, size in zip(range(-len(pattern.shape), 0), pattern.shape, strict=True):
        kept = np.logical_or.reduceat(kept, range(0, kept.shape[axis], size), axis=axis)
    return int(np.count_nonzero(kept)) * (math.prod(pattern.shape) * itemsize + _INDEX)


def channels(mask: np.ndarray, itemsize: int, pattern: Channel) -> int:
    """Return the bytes of whole kept slices and an int32 index for each."""
    count = mask.shape[pattern.axis]
    kept = np.moveaxis(mask, pattern.axis, 0).reshape(count, -1).any(axis=1)
    slice_size = mask.size // max(count, 1)
    return int(np.count_nonzero(kept)) * (slice_size * itemsize + _INDEX)
