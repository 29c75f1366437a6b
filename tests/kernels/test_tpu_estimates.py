"""What products are estimated to take on a TPU, and what is chosen by it."""

import functools

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import tpu_costs, tpu_estimates
from experiments.benchmarks.tpu_aot import CHIPS
from experiments.benchmarks.tpu_costs import Size
from jaxprune.formats import PLAIN, BlockSparse, NMSparse
from jaxprune.kernels import dispatch, tuning

STEP = tpu_costs.Step(full=1000, single=200, rest=10, edges=3, around=1500)
SQUARE = Size(4096, 8192, 8192)


@pytest.mark.parametrize(
    ("product", "density", "cycles", "copies"),
    [
        # 4 tiles of rows, 64 columns of 16 or 6 blocks, 8 a step.
        ("forward", 0.25, 4 * 64 * 2023, 4 * 64 * 16 * 2**15 + 2**27),
        ("input gradient", 0.1, 4 * 64 * 1213, 4 * 64 * 6 * 2**15 + 2**27),
        # All rows are held, and a column's gradients stay.
        ("weight gradient", 0.25, 64 * 16 * 1013, 64 * 17 * 2**20 + 64 * 16 * 2**15),
    ],
)
def test_costs_of_blocks(product: str, density: float, cycles: int, copies: int):
    chip = CHIPS["v5e"]
    cost = tpu_costs.block_cost(chip, product, 128, density, SQUARE, STEP)
    assert cost.cycles == pytest.approx(cycles / chip.clock)
    assert cost.copies == pytest.approx(copies / chip.bytes)
    assert cost.seconds == max(cost.cycles, cost.copies) + 1500 / chip.clock


def test_lines_of_a_gradient_are_those_of_the_transpose():
    chip, wide = CHIPS["v5e"], Size(512, 4096, 8192)
    there = tpu_costs.block_cost(chip, "forward", 128, 0.5, wide, STEP)
    back = tpu_costs.block_cost(chip, "input gradient", 128, 0.5, Size(512, 8192, 4096), STEP)
    assert back == there


def test_cores_share_what_can_be_shared():
    two, one = (
        tpu_costs.block_cost(CHIPS[name], "forward", 512, 0.5, SQUARE, STEP).cycles
        for name in ("v5p", "v6e")
    )
    assert two == pytest.approx(one / 2, rel=1e-3)  # their clocks differ by less


def test_a_kernel_must_be_faster_alone_and_with_its_gradients():
    dense = tpu_costs.dense_cost(CHIPS["v5e"], SQUARE).seconds
    made = dense + 2**27 / CHIPS["v5e"].bytes
    entry = functools.partial(tpu_estimates.entry, "v5e", "128x128", 0.5, SQUARE, "block_tpu")
    assert entry([dense / 2] * 3).best == "block_tpu"
    assert entry([dense / 2] * 3).speedup == 2.0
    assert entry([dense / 2, dense, dense * 2]).best == "dense"
    assert entry([dense, dense / 4, dense / 4]).best == "dense"
    assert entry([dense]).speedup == round(dense / made, 2)  # the weight is made dense first


def test_the_table_has_estimates_of_all_chips_and_formats():
    written = tuning.load(tuning.ESTIMATES)
    kinds = {(e.product.device, e.product.format) for e in written}
    formats = ["128x128", "256x256", "512x512", "2:4", "4:8", "1:4", "2:8", "1:16"]
    assert kinds == {(chip.kind, format) for chip in CHIPS.values() for format in formats}
    assert all(e.estimated for e in written)


def blocks(side: int, density: float) -> BlockSparse:
    """Describe a weight of 4096 × 4096."""
    slots = int((4096 // side) ** 2 * density)
    make = functools.partial(BlockSparse.from_dense, block=(side, side), slots=slots)
    return jax.eval_shape(make, jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16))


@pytest.mark.parametrize(
    ("kind", "side", "density", "kernel"),
    [
        ("TPU v5 lite", 128, 0.5, "block_tpu"),
        ("TPU v6 lite", 128, 0.5, None),  # its units are 256 wide
        ("TPU v6 lite", 128, 0.1, "block_tpu"),
        ("TPU v6 lite", 512, 0.5, "block_tpu"),
        ("TPU v4", 128, 0.1, None),
    ],
)
def test_what_is_chosen_on_a_tpu(
    kind: str, side: int, density: float, kernel: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(tuning.VARIABLE, raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(dispatch, "device_kind", lambda: kind)
    chosen = dispatch.choose(4096, blocks(side, density), None)
    assert (chosen.kernel.kernel if chosen.kernel else None) == kernel
    assert kernel or chosen == dispatch.Choice()


def test_few_rows_of_nm_are_multiplied_in_the_kernels_layout(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(tuning.VARIABLE, raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(dispatch, "device_kind", lambda: "TPU v5 lite")
    make = functools.partial(NMSparse.from_dense, n=2, m=4)
    w = jax.eval_shape(make, jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16))
    assert dispatch.layout_of(8, w) == dispatch.KernelLayout("nm_tpu")
    assert dispatch.layout_of(4096, w) == PLAIN


def test_what_was_measured_goes_before_estimates():
    product = tuning.Product("TPU v5 lite", "128x128", "bfloat16", 4096, 4096, 4096, 0.5)
    far = tuning.Product("TPU v5 lite", "128x128", "bfloat16", 8192, 4096, 4096, 0.5)
    estimate = tuning.Entry(product, "block_tpu", 1.6, estimated=True)
    measured = tuning.Entry(far, "dense", 1.0)
    assert tuning.near(product, [estimate, measured]) == [measured, estimate]


def test_the_page_says_what_the_command_writes():
    text = tpu_estimates.PAGE.read_text()
    parts = ("HEAD", "DENSE", "BLOCK", "NM", "CHOICE")
    assert [name for name in parts if getattr(tpu_estimates, name) not in text] == []
