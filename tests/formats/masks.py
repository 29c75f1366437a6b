"""Random masks ``[*layers, in, out]`` made with numpy alone."""

import numpy as np

Shape = tuple[int, ...]


def nm(shape: Shape, n: int, m: int, rng: np.random.Generator) -> np.ndarray:
    """Keep n of every m along the inputs."""
    *lead, k, n_out = shape
    return (np.argsort(rng.random((*lead, k // m, m, n_out)), -2) < n).reshape(shape)


def blocks(shape: Shape, block: tuple[int, int], kept: int, rng: np.random.Generator) -> np.ndarray:
    """Keep a number of blocks of each layer."""
    *lead, k, n_out = shape
    tall, wide = block
    grid = k // tall, n_out // wide
    rank = np.argsort(np.argsort(rng.random((*lead, grid[0] * grid[1])), -1), -1)
    live = (rank < kept).reshape(*lead, *grid)
    return np.repeat(np.repeat(live, tall, -2), wide, -1)


def anywhere(shape: Shape, kept: int, rng: np.random.Generator) -> np.ndarray:
    """Keep a number of weights of each layer."""
    *lead, k, n_out = shape
    rank = np.argsort(np.argsort(rng.random((*lead, k * n_out)), -1), -1)
    return (rank < kept).reshape(shape)
