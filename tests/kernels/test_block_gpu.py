"""The block-sparse kernels for Hopper GPUs in Pallas's interpreter, against dense numpy.

jax 0.10 has no interpreter for them; there the stated reason is tested.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu

from jaxprune.formats import BlockSparse
from jaxprune.kernels import (
    _hopper,
    block_gpu,
    block_gpu_columns,
    block_gpu_mosaic,
    block_gpu_union,
    block_gpu_weights,
)

H100 = "NVIDIA H100 80GB HBM3"
BUILDS = _hopper.missing() is None


@contextlib.contextmanager
def only_where_it_builds() -> Iterator[Any]:
    """Give the interpreter's parameters; where jax cannot build the kernels, ask for the error."""
    if BUILDS:
        yield mosaic_gpu.InterpretGPUParams()
        return
    assert "needs jax 0.11 or newer" in str(supports())
    with pytest.raises((TypeError, AttributeError)):
        yield None


def supports(**changed: Any) -> str | None:
    given = {"rows": 100, "k": 256, "n_out": 384, "dtype": jnp.bfloat16, "block": (128, 128)}
    given |= {"device_kind": H100} | changed
    return block_gpu.supports(**given)


@pytest.fixture(autouse=True)
def few_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thread blocks, so that each has several tiles, one after the other."""
    monkeypatch.setattr(block_gpu_mosaic, "multiprocessors", lambda: 2)


class Case:
    """A weight with an empty column and an empty row of blocks, and its products by numpy."""

    def __init__(
        self,
        mask: list[str],
        block: tuple[int, int],
        *,
        rows: int,
        dtype: Any = jnp.bfloat16,
        spare: int = 2,
    ) -> None:
        rng = np.random.default_rng(0)
        kept = np.array([[c == "#" for c in line] for line in mask])
        self.kept = np.kron(kept, np.ones(block, bool))

        def draw(*shape: int) -> jax.Array:
            return jnp.asarray(rng.standard_normal(shape), dtype)

        dense = jnp.where(self.kept, draw(*self.kept.shape), jnp.zeros((), dtype))
        self.block = block
        self.w = BlockSparse.from_dense(dense, block=block, slots=int(kept.sum()) + spare)
        self.x, self.dy = draw(rows, self.kept.shape[0]), draw(rows, self.kept.shape[1])
        self.dense, x, dy = (np.asarray(a, np.float32) for a in (dense, self.x, self.dy))
        self.y, self.dx = x @ self.dense, dy @ self.dense.T
        self.dw = np.where(self.kept, x.T @ dy, 0)

    def forward(self, **how: Any) -> jax.Array:
        w = self.w
        n_out = w.shape[1]
        return block_gpu.forward(self.x, w.data, w.rows, w.columns, w.starts, n_out=n_out, **how)

    def input_gradient(self, **how: Any) -> jax.Array:
        w = self.w
        index = (w.rows, w.columns, w.by_row, w.row_starts)
        return block_gpu.input_gradient(self.dy, w.data, *index, k=w.shape[0], **how)

    def weight_gradient(self, **how: Any) -> np.ndarray:
        w = self.w
        arrays = (self.x, self.dy, w.rows, w.columns)
        data = block_gpu.weight_gradient(*arrays, block=self.block, **how)
        live = jnp.where(w.live()[:, None, None], data, jnp.zeros((), data.dtype))
        filled = BlockSparse(live, w.rows, w.columns, w.starts, w.by_row, w.row_starts, w.count)
        return np.asarray(filled.todense(), np.float32)


def close(got: Any, want: np.ndarray, dtype: Any = jnp.bfloat16) -> None:
    got = np.asarray(got, np.float32)
    assert got.shape == want.shape
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert error < 2 * float(jnp.finfo(dtype).eps) / 3


UNBALANCED = ["#.#.", "....", "#.##"]
BALANCED = ["#.#", ".##", "##."]
WIDE = block_gpu.Config(64, 2, 2)
UNION = block_gpu.Config(64, 2, 2, union=True)


def test_blocks_of_128_multiply_as_dense_does() -> None:
    case = Case(UNBALANCED, (128, 128), rows=140)  # three row tiles, the last of 12 rows
    with only_where_it_builds() as interpret:
        y = case.forward(config=WIDE, count=case.w.count, interpret=interpret)
        close(y, case.y)
        assert not np.asarray(y)[:, 128:256].any()  # the empty column


def test_blocks_of_128_give_the_gradient_of_the_input() -> None:
    case = Case(UNBALANCED, (128, 128), rows=70)  # not a multiple of 8: padded
    with only_where_it_builds() as interpret:
        close(case.input_gradient(config=WIDE, count=case.w.count, interpret=interpret), case.dx)


@pytest.mark.parametrize("counted", [True, False])
def test_padding_slots_are_harmless_counted_or_not(counted: bool) -> None:
    case = Case(UNBALANCED, (64, 64), rows=72, dtype=jnp.float16)
    config = block_gpu.Config(64, 2, 2, 32)
    with only_where_it_builds() as interpret:
        how = {"config": config, "interpret": interpret}
        if counted:
            got = case.input_gradient(count=case.w.count, **how)
            close(got, case.dx, jnp.float16)
        else:
            close(case.forward(**how), case.y, jnp.float16)


def test_blocks_of_64_walk_the_union_of_four_columns() -> None:
    case = Case(["##.##.", "#..#.#", "....##"], (64, 64), rows=136)
    with only_where_it_builds() as interpret:
        close(case.forward(config=UNION, interpret=interpret), case.y)


def test_the_union_gives_the_gradient_of_the_input() -> None:
    case = Case(BALANCED, (64, 64), rows=64)
    with only_where_it_builds() as interpret:
        close(case.input_gradient(config=UNION, count=case.w.count, interpret=interpret), case.dx)


@pytest.mark.parametrize("block", [(128, 128), (64, 64)])
def test_the_gradient_of_the_weight_is_at_stored_blocks(block: tuple[int, int]) -> None:
    case = Case(UNBALANCED, block, rows=100)
    config = block_gpu.WeightConfig(2, 2, 64)
    with only_where_it_builds() as interpret:
        got = case.weight_gradient(count=case.w.count, config=config, interpret=interpret)
        close(got, case.dw)


def test_another_mask_is_not_compiled_again() -> None:
    first, second = (
        Case(mask, (64, 64), rows=64, spare=0) for mask in (BALANCED, ["###", "##.", "..#"])
    )
    with only_where_it_builds() as interpret:
        how = {"config": block_gpu.Config(64, 2, 2, 32), "interpret": interpret}
        close(first.forward(**how), first.y)
        compiled = block_gpu_columns.product._cache_size()
        close(second.forward(**how), second.y)
        assert block_gpu_columns.product._cache_size() == compiled


@pytest.mark.slow  # other multiples of 64, defaults: 20 s
@pytest.mark.parametrize("block", [(64, 192), (256, 64), (128, 256), (320, 128)])
def test_other_multiples_of_64(block: tuple[int, int]) -> None:
    case = Case(["#.#", "..#"], block, rows=70)
    with only_where_it_builds() as interpret:
        close(case.forward(interpret=interpret), case.y)
        close(case.input_gradient(interpret=interpret), case.dx)
        close(case.weight_gradient(interpret=interpret), case.dw)


def test_supports_names_what_is_needed() -> None:
    assert supports() == _hopper.missing()
    assert supports(device_kind="NVIDIA A100-SXM4-40GB") == (
        "needs an NVIDIA Hopper GPU (H100, H200), not NVIDIA A100-SXM4-40GB. "
        "Use implementation='xla'."
    )
    assert supports(dtype=jnp.float32) == (
        "needs bfloat16 or float16, not float32. Convert x and the blocks."
    )
    assert supports(block=(128, 32)) == (
        "needs blocks whose sides are multiples of 64, not 128 × 32. "
        "Use implementation='xla', or prune larger blocks."
    )
    assert supports(k=200) == (
        "needs whole blocks of 128 × 128, not a weight of 200 × 384. Pad it to 256 × 384."
    )
    assert supports(rows=0) == "needs at least one row of x, not 0."


def test_all_settings_fit_the_shared_memory() -> None:
    limit = block_gpu_mosaic.SHARED_BYTES - 1024  # room for barriers
    for features, depth in ((128, 128), (64, 64), (64, 128), (192, 64)):
        found = block_gpu.configs(9000, depth, features, jnp.bfloat16, (depth, features), 0.5)
        found += [
            block_gpu.default(rows, columns, features, depth, density)
            for rows, columns, density in itertools.product((1, 100, 9000), (1, 64), (0.1, 0.9))
        ]
        for config in found:
            if config.union:
                plan = block_gpu_union.Plan(100, 4, False, config)
            else:
                wide = features % 128 == 0
                plan = block_gpu_columns.Plan(100, 4, features, depth, wide, False, config)
            assert plan.shared_bytes <= limit, config
            assert config.tokens % config.buffer == 0
    for block in ((128, 128), (64, 64), (256, 128), (192, 64), (64, 128)):
        part, wide = block_gpu_weights.part_of(block[0]), block[1] % 128 == 0
        for config in block_gpu.configs_weights(block):
            plan = block_gpu_weights.Plan(100, 4, block, part, wide, config)
            assert plan.shared_bytes <= limit, config
            assert config.members * part <= 256  # registers of a warpgroup
            assert part % config.buffer == 0


def test_the_default_shares_columns_at_low_sparsity_only() -> None:
    default = functools.partial(block_gpu.default, 8192, 128, 64, 64)
    assert default(0.5).union
    assert not default(0.1).union
    assert not block_gpu.default(8192, 64, 128, 128, 0.5).union
    assert block_gpu.default(16, 64, 128, 128, 0.5).tokens == 64  # few rows: small tiles


def test_fewer_blocks_at_once_where_the_last_round_would_be_half_empty() -> None:
    def members(slots: int) -> int:
        return block_gpu.default_weights(slots, 64, (128, 128), processors=132).members

    assert members(2048) == 2  # 8 rounds
    assert members(132) == 1  # one round of single blocks, or one of pairs that is half empty


def test_columns_go_by_load_and_ties_by_place() -> None:
    loads = np.array([3, 0, 7, 3, 7, 1], np.int32)
    got = block_gpu_mosaic.by_load(jnp.asarray(loads))
    np.testing.assert_array_equal(got, np.argsort(-loads, kind="stable"))


@pytest.mark.parametrize(("rows", "columns", "width"), [(5, 3, 2), (1, 4, 8), (6, 1, 3)])
def test_every_tile_has_one_place(rows: int, columns: int, width: int) -> None:
    places = {
        tuple(int(p) for p in block_gpu_mosaic.place(jnp.int32(i), rows, columns, width))
        for i in range(rows * columns)
    }
    assert places == set(itertools.product(range(rows), range(columns)))


def test_groups_hold_every_slot_once_and_one_column_each() -> None:
    columns = np.array([0, 0, 0, 2, 2, 3, 3, 3], np.int32)
    groups = block_gpu_weights.group(jnp.asarray(columns), jnp.int32(6), number=4, size=2)
    held: list[int] = []
    for column, first, count in zip(*(np.asarray(a) for a in groups), strict=True):
        slots = range(first, first + count)
        assert all(columns[s] == column for s in slots)
        held += slots
    assert held == [0, 1, 2, 3, 4, 5]  # 6 and 7 are padding
    assert len(groups.first) == 8


def test_unions_list_the_rows_that_any_of_four_columns_has() -> None:
    case = Case(["##.##.", "#..#..", "......", "...#.#"], (64, 64), rows=1)
    w = case.w
    slots = jnp.arange(w.slots, dtype=jnp.int32)
    stops = jnp.minimum(w.starts[1:], w.count)
    lists = block_gpu_columns.walk(w.starts[:-1], stops, w.rows, slots)
    union = block_gpu_union.unite(lists, 4)
    np.testing.assert_array_equal(union.steps, [3, 2])
    np.testing.assert_array_equal(union.order, [0, 1])
    np.testing.assert_array_equal(union.faces[0, :3], [0, 1, 3])
    np.testing.assert_array_equal(union.faces[1, :2], [0, 3])
    found = [[int(s) for s in row] for row in union.slots[0, :3]]
    rows, columns = np.asarray(w.rows), np.asarray(w.columns)
    for face, row in zip((0, 1, 3), found, strict=True):
        for column, slot in enumerate(row):
            if slot >= 0:
                assert (rows[slot], columns[slot]) == (face, column)
    assert [[s >= 0 for s in row] for row in found] == [
        [True, True, False, True],
        [True, False, False, True],
        [False, False, False, True],
    ]
    np.testing.assert_array_equal(union.flags[0, :, 0], [0b011, 0b001, 0b000, 0b111])
    assert int(union.slots[1, 0, 1]) == -1  # padding slots stand in row 0 of the last column
