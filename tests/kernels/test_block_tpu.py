"""Block-sparse products for TPUs, interpreted; `test_tpu_aot` compiles them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.kernels import block_tpu, block_tpu_gradient
from jaxprune.kernels.block_tpu_steps import plan

V5E = "TPU v5 lite"


class Case(NamedTuple):
    """A weight of blocks of which some slots are unused, and its dense form."""

    x: jax.Array
    dy: jax.Array
    data: jax.Array
    rows: jax.Array
    columns: jax.Array
    starts: jax.Array
    by_row: jax.Array
    row_starts: jax.Array
    used: int
    dense: np.ndarray


def case(
    rng: np.random.Generator, mask: np.ndarray, block: tuple[int, int], dtype: Any, unused: int
) -> Case:
    """Return a case of 37 rows: more than two tiles of 16."""
    across, down = np.nonzero(mask.T)
    count = len(down)
    rows = np.r_[down, np.zeros(unused, int)]
    columns = np.r_[across, np.full(unused, mask.shape[1] - 1)]
    by_row = np.lexsort((np.arange(len(rows)) >= count, columns, rows))
    unused_last = np.r_[by_row[by_row < count], by_row[by_row >= count]]
    first = rows[unused_last] == 0  # unused slots stand last in row 0
    by_row = np.r_[unused_last[first], unused_last[~first]]
    blocks = jnp.asarray(rng.standard_normal((len(rows), *block)), dtype).at[count:].set(0)
    dense = np.zeros((mask.shape[0], mask.shape[1], *block))
    dense[down, across] = np.asarray(blocks[:count], np.float64)
    dense = dense.transpose(0, 2, 1, 3).reshape(mask.shape[0] * block[0], -1)
    ends = np.searchsorted(columns, np.arange(mask.shape[1] + 1))
    row_ends = np.searchsorted(rows[by_row], np.arange(mask.shape[0] + 1))
    index = [jnp.asarray(a, jnp.int32) for a in (rows, columns, ends, by_row, row_ends)]
    x = jnp.asarray(rng.standard_normal((37, dense.shape[0])), dtype)
    dy = jnp.asarray(rng.standard_normal((37, dense.shape[1])), dtype)
    return Case(x, dy, blocks, *index, count, dense)


def products(
    c: Case, count: int | None, config: block_tpu.Config, interpret: Any
) -> list[np.ndarray]:
    """Return y, dX and dW."""
    sums = block_tpu_gradient.Config(32, 16)  # 37 rows in two tiles of two parts

    @jax.jit
    def run(x: jax.Array, dy: jax.Array, index: tuple[jax.Array, ...], more: Any) -> Any:
        data, rows, columns, starts, by_row, row_starts = index
        block, where = data.shape[1:], {"count": more, "interpret": interpret}
        y = block_tpu.forward(
            x, data, rows, columns, starts, n_out=dy.shape[1], config=config, **where
        )
        dx = block_tpu.input_gradient(
            dy, data, rows, columns, by_row, row_starts, k=x.shape[1], config=config, **where
        )
        dw = block_tpu.weight_gradient(x, dy, rows, columns, block=block, config=sums, **where)
        return y, dx, dw

    found = run(c.x, c.dy, c[2:8], count)
    assert {a.dtype for a in found} == {c.x.dtype}
    return [np.asarray(a, np.float64) for a in found]


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


UNBALANCED = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 0], [1, 0, 1]], bool)
BALANCED = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], bool)


@pytest.mark.parametrize(
    ("mask", "block", "dtype", "unused", "counted", "limit"),
    [
        pytest.param(UNBALANCED, (128, 128), jnp.float32, 3, False, 1e-6, id="empty lines"),
        pytest.param(BALANCED, (128, 256), jnp.bfloat16, 2, True, 3e-3, id="rectangles"),
        pytest.param(
            BALANCED,
            (512, 512),
            jnp.float32,
            0,
            False,
            1e-6,
            id="512",
            marks=pytest.mark.slow(reason="large blocks take the same path"),
        ),
    ],
)
def test_products_are_those_of_the_dense_weight(
    mask: np.ndarray,
    block: tuple[int, int],
    dtype: Any,
    unused: int,
    counted: bool,
    limit: float,
    watched: Any,
    rng: np.random.Generator,
):
    c = case(rng, mask, block, dtype, unused)
    if counted:  # what lies in unused slots is not even read
        c = c._replace(data=c.data.at[c.used :].set(jnp.nan))
    found = products(c, c.used if counted else None, block_tpu.Config(16, 2), watched)
    x, dy = np.asarray(c.x, np.float64), np.asarray(c.dy, np.float64)
    assert error(found[0], x @ c.dense) < limit
    assert error(found[1], dy @ c.dense.T) < limit
    tiles = (x.T @ dy).reshape(mask.shape[0], block[0], mask.shape[1], block[1])
    wanted = tiles[np.asarray(c.rows), :, np.asarray(c.columns)]
    if counted:
        wanted[c.used :] = 0
    assert error(found[2], wanted) < limit
    empty = ~mask.any(axis=0)
    assert (found[0].reshape(37, -1, block[1])[:, empty] == 0).all()


def steps(counts: list[int], slots: int, blocks: int) -> list[tuple[int, list[int]]]:
    """Return the line and the slots of each step of lines with so many blocks."""
    ends = np.cumsum(counts)
    starts = jnp.asarray(ends - np.array(counts), jnp.int32)
    order = jnp.arange(slots, dtype=jnp.int32)[::-1]
    inner = jnp.arange(slots, dtype=jnp.int32) * 10
    cut = jax.jit(plan, static_argnames="blocks")
    found = cut(starts, jnp.asarray(ends, jnp.int32), inner, order, blocks=blocks)
    assert found.line.shape == (slots // blocks + len(counts),)
    np.testing.assert_array_equal(found.inner, found.slot * 10)
    slot = np.asarray(found.slot).reshape(-1, blocks)
    number = range(int(found.number))
    return [(int(found.line[t]), slot[t][: int(found.live[t])].tolist()) for t in number]


def test_every_line_has_a_step_and_every_block_is_in_one():
    found = steps([3, 0, 4, 1], slots=9, blocks=2)
    assert found == [(0, [8, 7]), (0, [6]), (1, []), (2, [5, 4]), (2, [3, 2]), (3, [1])]


def test_as_many_steps_as_there_may_be():
    # Each line wastes as much of its last step as it can.
    assert len(steps([1, 1, 1, 0], slots=3, blocks=3)) == 4
    assert len(steps([3, 3], slots=6, blocks=2)) == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"rows": 1, "dtype": jnp.float32, "block": (128, 512)}, None),
        (
            {"device_kind": "cpu"},
            "needs a TPU v5e, v5p or v6e, not cpu. Use implementation='xla'.",
        ),
        (
            {"device_kind": "TPU v4"},
            "needs a TPU v5e, v5p or v6e, not TPU v4. Use implementation='xla'.",
        ),
        (
            {"dtype": jnp.float16},
            "needs float32 or bfloat16, not float16. Convert x and the weight.",
        ),
        (
            {"block": (64, 128)},
            "needs blocks whose sides are multiples of 128, not 64 × 128. Use "
            "implementation='xla', or prune larger blocks.",
        ),
        (
            {"k": 65536, "n_out": 65536},
            "needs at most 65536 places for blocks, not 262144. Use larger blocks, or split the "
            "weight.",
        ),
        (
            {"block": (4096, 4096)},
            "cannot hold 16 rows of 8192 entries and two blocks of 4096 × 4096 in fast memory. "
            "Split the weight, or use smaller blocks.",
        ),
    ],
)
def test_what_is_refused_is_told_with_the_remedy(change: dict[str, Any], reason: str | None):
    asked = {"rows": 4096, "k": 8192, "n_out": 8192, "dtype": jnp.bfloat16, "block": (128, 128)}
    assert block_tpu.supports(**({"device_kind": V5E} | asked | change)) == reason


def test_tiles_are_as_tall_as_fast_memory_allows():
    tall = functools.partial(block_tpu.default, dtype=jnp.bfloat16)
    assert tall(4096, 4096, block=(128, 128)) == block_tpu.Config(1024, 8)
    assert tall(4096, 28672, block=(256, 256)) == block_tpu.Config(256, 4)
    assert tall(5, 8192, block=(512, 512)) == block_tpu.Config(16, 2)
    tried = block_tpu.configs(4096, 4096, 4096, jnp.bfloat16, (128, 128), 0.25)
    assert tried[0] == block_tpu.Config(1024, 8)
    assert len(tried) == len(set(tried)) > 3


def test_all_rows_of_a_gradient_are_held_where_they_fit():
    tall = functools.partial(block_tpu_gradient.default, dtype=jnp.bfloat16)
    assert tall(4096, block=(128, 128)) == block_tpu_gradient.Config(4096, 1024)
    assert tall(65536, block=(128, 128)) == block_tpu_gradient.Config(32768, 1024)
    assert tall(5, block=(512, 512)) == block_tpu_gradient.Config(16, 16)
    # The sums of a large block take the place of rows, and then all of it.
    assert tall(4096, block=(2048, 2048)) == block_tpu_gradient.Config(1536, 512)
    assert block_tpu_gradient.most_rows(jnp.float32, (2048, 2048)) == 256
    assert block_tpu_gradient.most_rows(jnp.float32, (2048, 2560)) == 0
    tried = block_tpu_gradient.configs(4096, jnp.bfloat16, (512, 512))
    assert [c.chunk for c in tried] == [512, 256, 1024]
