"""Slow, plain versions of the patterns, for arrays of numpy."""

import itertools

import numpy as np


def unstructured(scores: np.ndarray, kept: int) -> np.ndarray:
    """Keep the best single weights, by a stable sort."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:kept]] = True
    return mask.reshape(scores.shape)


def nm(scores: np.ndarray, kept: int, m: int, axes: tuple[int, ...]) -> np.ndarray:
    """Keep the best weights of every m along the axes, flattened in the given order."""
    rest = [a for a in range(scores.ndim) if a not in axes]
    order = np.transpose(np.arange(scores.size).reshape(scores.shape), [*rest, *axes])
    rows = order.reshape(-1, np.prod([scores.shape[a] for a in axes], dtype=int))
    mask = np.zeros(scores.size, bool)
    for row in rows:
        for start in range(0, len(row), m):
            group = row[start : start + m]
            best = np.argsort(-scores.ravel()[group], kind="stable")[:kept]
            mask[group[best]] = True
    return mask.reshape(scores.shape)


def block(scores: np.ndarray, kept: int, sizes: tuple[int, ...]) -> np.ndarray:
    """Keep the blocks of the last axes with the best means."""
    sizes = (1,) * (scores.ndim - len(sizes)) + sizes
    starts = itertools.product(*(range(0, n, s) for n, s in zip(scores.shape, sizes, strict=True)))
    cells = [tuple(slice(i, i + s) for i, s in zip(at, sizes, strict=True)) for at in starts]
    means = np.array([scores[cell].mean() for cell in cells])
    mask = np.zeros(scores.shape, bool)
    for index in np.argsort(-means, kind="stable")[:kept]:
        mask[cells[index]] = True
    return mask
