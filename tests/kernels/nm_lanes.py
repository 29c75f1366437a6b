"""The decode kernel's lanes, emulated in numpy: the few instructions it uses, and nothing else."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.kernels import _hopper
from jaxprune.kernels import nm_decode_gpu_layout as layout
from jaxprune.kernels.nm_decode_gpu_layout import Packed, Plan

LANE = np.arange(32)
H100 = "NVIDIA H100 80GB HBM3"


@contextlib.contextmanager
def only_where_it_builds() -> Iterator[bool]:
    """Say whether jax can build the kernels; where it cannot, ask for the error and the reason."""
    reason = _hopper.refusal(jnp.bfloat16, H100)
    if reason is None:
        yield True
        return
    assert "needs jax 0.11 or newer" in reason
    with pytest.raises((TypeError, AttributeError)):
        yield False


def groups(rng: np.random.Generator, n_out: int, k: int, n: int, m: int, dtype: Any) -> Any:
    """Return random values and positions of N:M weights, and the weights [K, N] they stand for."""
    count = k // m
    order = rng.permuted(np.broadcast_to(np.arange(m), (n_out, count, m)), axis=-1)
    positions = np.sort(order[..., :n], -1).astype(np.uint8)
    values = jnp.asarray(rng.standard_normal((n_out, count, n)), jnp.float32).astype(dtype)
    dense = np.zeros((n_out, count, m), np.float32)
    np.put_along_axis(dense, positions.astype(np.int64), np.asarray(values, np.float32), -1)
    return values, jnp.asarray(positions), dense.reshape(n_out, k).T


def _float(bits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return bits.astype(np.uint16).view(dtype).astype(np.float32)


def _sign_bytes(word: np.ndarray, half: int) -> np.ndarray:
    """Replicate the signs of two bytes, as ``prmt`` does with selectors 0x9988 and 0xBBAA."""
    signs = [(word >> (8 * (2 * half + i) + 7)) & 1 for i in range(2)]
    return signs[0] * 0xFFFF + signs[1] * 0xFFFF0000


def _read_x(x: np.ndarray, address: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Read 16 bytes a lane: four words of two entries, [lane, 2] each."""
    start = address // 2
    return [np.stack([x[rows, start + 2 * w], x[rows, start + 2 * w + 1]], 1) for w in range(4)]


def _read_matrices(x: np.ndarray, address: np.ndarray, first_row: int) -> list[np.ndarray]:
    """Read four 8 x 8 matrices, as ``ldmatrix`` does: lane l points to row l % 8 of l // 8."""
    words = []
    for matrix in range(4):
        pointer = 8 * matrix + LANE // 4
        row, start = first_row + pointer % 8, address[pointer] // 2 + 2 * (LANE % 4)
        words.append(np.stack([x[row, start], x[row, start + 1]], 1))
    return words


def _sparse_product(
    sums: np.ndarray,
    weights: list[np.ndarray],
    tokens: list[np.ndarray],
    meta: np.ndarray,
    lanes: int,
    dtype: np.dtype,
) -> None:
    """Add to [16, 8] sums, as ``mma.sp.m16n8k32`` does."""
    a, b = np.zeros((16, 32), np.float32), np.zeros((32, 8), np.float32)
    for i, words in enumerate(tokens):
        for j in range(2):
            b[8 * i + 2 * (LANE % 4) + j, LANE // 4] = words[:, j]
    for i, word in enumerate(weights):
        row, group = LANE // 4 + 8 * (i % 2), LANE % 4 + 4 * (i // 2)
        source = 4 * (LANE // 4) + 2 * lanes + group // 4  # the lane that holds the metadata
        nibble = (meta[source] >> (16 * (i % 2) + 4 * (group % 4))) & 15
        low, high = nibble & 3, nibble >> 2
        assert np.all(low < high), "the hardware wants rising places"
        a[row, 4 * group + low] = _float(word & 0xFFFF, dtype)
        a[row, 4 * group + high] = _float(word >> 16, dtype)
    sums += a @ b


def _lane_words(p: Plan, values: np.ndarray, meta: np.ndarray) -> tuple[list, list]:
    """Load what each lane holds of one chunk of a tile."""
    loads = values.reshape(p.loads, 32, 4)
    words = [loads[i, :, j] for i in range(p.loads) for j in range(4)]
    reader, start, held = LANE if p.native else LANE >> 2, 0, []
    for size in p.metas:
        held += [meta[start + reader * size + j] for j in range(size)]
        start += size * p.readers
    return words, held


def _operands(p: Plan, words: list, meta: list, part: int) -> list:
    if p.native:
        return [(0, *layout.native_operands(words, meta, part))]
    found = []
    for plane in range(p.n):
        steps, bits = layout.plane_operands(
            p, words, meta, part * p.n + plane, LANE & 3, _sign_bytes
        )
        found += [(i, [w & 0xFFFFFFFF for w in s], bits, 0) for i, s in enumerate(steps)]
    return found


def multiply(x: np.ndarray, packed: Packed, n: int, m: int) -> np.ndarray:
    """Return x @ W as the lanes compute it; ``x`` [rows, K] float32, K whole chunks."""
    p, rows = layout.plan(n, m), x.shape[0]
    values, dtype = np.asarray(packed.values), np.asarray(packed.values).dtype
    tiles, chunks = values.shape[:2]
    values = values.view(np.uint16).reshape(tiles, chunks, -1, 2).astype(np.int64)
    values = values[..., 0] | (values[..., 1] << 16)
    meta = np.asarray(packed.meta).view(np.uint32).astype(np.int64)
    wide = -(-rows // 8)
    x = np.pad(x, ((0, 8 * wide - rows), (0, 0)))
    y = np.zeros((tiles * 16, 8 * wide), np.float32)
    parts = p.steps if p.native else p.units
    for tile in range(tiles):
        for chunk in range(chunks):
            words, held = _lane_words(p, values[tile, chunk], meta[tile, chunk])
            for part in range(parts):
                address = (
                    layout.x_offset(p, LANE) + 2 * chunk * p.chunk + part * (2 * p.chunk // parts)
                )
                operands = _operands(p, words, held, part)
                for b in range(wide):
                    if p.native:
                        loaded = [_read_matrices(x, address, 8 * b)]
                    else:
                        row = 8 * b + LANE // 4
                        loaded = [_read_x(x, address + at, row) for at in layout.x_loads(p)]
                    sums = y[16 * tile : 16 * tile + 16, 8 * b : 8 * b + 8]
                    for step, weights, bits, lanes in operands:
                        tokens = layout.x_fragment(p, loaded, step)
                        _sparse_product(sums, weights, tokens, bits, lanes, dtype)
    return y.T[:rows]
