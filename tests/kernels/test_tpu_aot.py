"""The TPU kernels, compiled for chips that are not there; what a compiled kernel's schedule says.

Compiling needs the package `libtpu`, which is there for Linux on x86-64 only.
"""

import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import tpu_aot, tpu_estimates
from experiments.benchmarks.tpu_aot import CHIPS, Region
from jaxprune.kernels import block_tpu, nm_tpu

compiles = pytest.mark.real.with_args(tpu_aot.missing)  # called with one function, it decorates


def array(shape: tuple[int, ...], dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def block_step(
    chip: str, rows: int, k: int, n_out: int, block: tuple[int, int], slots: int, dtype: Any
) -> Any:
    """Lower a product and both its gradients as one program."""

    def run(x: Any, dy: Any, data: Any, index: Any) -> Any:
        across, down, starts, by_row, row_starts, count = index
        y = block_tpu.forward(x, data, down, across, starts, n_out=n_out, count=count)
        dx = block_tpu.input_gradient(dy, data, down, across, by_row, row_starts, k=k, count=count)
        return y, dx, block_tpu.weight_gradient(x, dy, down, across, block=block, count=count)

    sizes = (slots, slots, n_out // block[1] + 1, slots, k // block[0] + 1)
    index = (*(array((size,), jnp.int32) for size in sizes), array((), jnp.int32))
    dense = (array((rows, k), dtype), array((rows, n_out), dtype))
    return tpu_aot.lowered(chip, run, *dense, array((slots, *block), dtype), index)


def nm_step(chip: str, n: int, m: int, rows: int, k: int, n_out: int, dtype: Any, kept: Any) -> Any:
    """Lower an N:M product of a packed weight."""
    shape = (n_out, k // m, n)
    pack = functools.partial(nm_tpu.pack, m=m)
    packed = jax.eval_shape(pack, array(shape, kept), array(shape, jnp.uint8))
    kind = "TPU v6 lite" if chip == "v6e" else "TPU v5"
    config = nm_tpu.default(rows, k, n_out, n, m, device_kind=kind)
    run = functools.partial(nm_tpu.matmul, n=n, m=m, n_out=n_out, config=config)
    return tpu_aot.lowered(chip, run, array((rows, k), dtype), packed)


def kernels(program: Any) -> int:
    """Compile a program; return how many kernels it has."""
    assert program.compile() is not None
    return program.as_text().count("@tpu_custom_call(")


@compiles
@pytest.mark.parametrize("chip", CHIPS)
def test_kernels_compile(chip: str):
    assert kernels(block_step(chip, 100, 1024, 768, (128, 128), 12, jnp.bfloat16)) == 3
    assert kernels(nm_step(chip, 2, 4, 8, 2048, 512, jnp.bfloat16, jnp.bfloat16)) == 1


_BLOCKS = [(128, 128), (128, 512), (256, 256), (512, 128), (512, 512)]


@compiles
@pytest.mark.slow(reason="compiles 60 kernels")
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("block", _BLOCKS)
def test_block_kernels_compile(chip: str, dtype: Any, block: tuple[int, int]):
    for rows, k, n_out in ((1, 8192, 4096), (1003, 28672, 8192)):
        assert block_tpu.supports(rows, k, n_out, dtype, block, device_kind="TPU") is None
        slots = k // block[0] * n_out // block[1] // 4
        assert kernels(block_step(chip, rows, k, n_out, block, slots, dtype)) == 3


@compiles
@pytest.mark.slow(reason="compiles 108 kernels")
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("kinds", [("f", "f"), ("b", "b"), ("b", "i")])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (2, 8), (4, 8), (1, 16), (8, 16), (3, 5)])
def test_nm_kernels_compile(chip: str, kinds: tuple[str, str], n: int, m: int):
    dtypes = {"f": jnp.float32, "b": jnp.bfloat16, "i": jnp.int8}
    dtype, kept = (dtypes[kind] for kind in kinds)
    for rows, k, n_out in ((1, 4096 * m // 4, 4100), (128, 1360 * m, 1000)):
        assert nm_tpu.supports(rows, k, n_out, dtype, n, m, device_kind="TPU") is None
        assert kernels(nm_step(chip, n, m, rows, k, n_out, dtype, kept)) == 1


@compiles
@pytest.mark.slow(reason="compiles many kernels")
@pytest.mark.parametrize("chip", CHIPS)
def test_all_candidates_compile(chip: str):
    for config in nm_tpu.configs(8, 4096, 4096, 2, 8):
        values = array((4096, 512, 2))
        packed = jax.eval_shape(
            functools.partial(nm_tpu.pack, m=8), values, array(values.shape, jnp.uint8)
        )
        run = functools.partial(nm_tpu.matmul, n=2, m=8, n_out=4096, config=config)
        assert kernels(tpu_aot.lowered(chip, run, array((8, 4096)), packed)) == 1
    index, starts = array((256,), jnp.int32), array((33,), jnp.int32)
    for config in block_tpu.configs(4096, 4096, 4096, jnp.bfloat16, (128, 128), 0.25):
        run = functools.partial(block_tpu.forward, n_out=4096, config=config)
        arrays = (array((4096, 4096)), array((256, 128, 128)), index, index, starts)
        assert kernels(tpu_aot.lowered(chip, run, *arrays)) == 1


@pytest.mark.parametrize("found", [None, "here"])
def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, found: str | None):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    reason = "the TPU compiler is not installed: pip install libtpu (Linux on x86-64)"
    assert tpu_aot.missing() == (None if found else reason)


def test_nothing_is_written_without_a_compiler(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="the TPU compiler is not installed"):
        tpu_estimates.main()


LISTING = """\
LB: loop body
     0   :  { %s1 = smov.u32 0 }
   0x1   :  { %s2 = smov.u32 1 }
   0x2 LB: > { %v1 = vld 0 ;;  %v2 = vmatmul.bf16.gmra.mxu0 %v1  ;; %v3 = vmatmul.mubr %v1 }
   0x3   : > { %v4 = vld 1 ;; %5 = vst [vmem:0] %v1 }
   0x4 PF: > { %s3 = sadd 1 }
   0x5 LB: > { %s4 = sadd 1 }
   0x6 PF: > { %v2 = vmatmul.bf16 %v1 }
"""


def test_a_schedule_is_read():
    clearing = "   0x7 PB: > { %1 = vst.msk [vmem:0] %v1 }\n" + "   0x8   : > { %1 = vst 0 }\n" * 9
    found = tpu_aot.parse_schedule(LISTING + clearing)
    assert found.regions == (
        Region(False, 2, 0, 0),
        Region(True, 2, 2, 1),
        Region(False, 1, 0, 0),
        Region(True, 1, 0, 0),
        Region(False, 1, 1, 0),
        Region(False, 10, 0, 10),
    )
    assert (found.loop, found.straight, found.edges, found.rest) == (2, 1, 10, 4)


def test_clocks_follow_from_the_published_rates():
    clocks = {name: round(chip.clock / 1e9, 2) for name, chip in CHIPS.items()}
    assert clocks == {"v5e": 1.5, "v5p": 1.75, "v6e": 1.75}


STEP = tpu_estimates.Step(full=1000, single=200, rest=10, edges=3)


@pytest.mark.parametrize(
    ("product", "sparsity", "cycles", "copies"),
    [
        # 4 tiles of rows, 64 columns of 16 or 6 blocks, 8 a step.
        ("forward", 0.75, 4 * 64 * 2023, 4 * 64 * 16 * 2**15 + 2**27),
        ("input gradient", 0.9, 4 * 64 * 1213, 4 * 64 * 6 * 2**15 + 2**27),
        # All rows are held, and a column's gradients stay.
        ("weight gradient", 0.75, 64 * 16 * 1013, 64 * 17 * 2**20 + 64 * 16 * 2**15),
    ],
)
def test_costs_of_blocks(product: str, sparsity: float, cycles: int, copies: int):
    chip = CHIPS["v5e"]
    cost = tpu_estimates.block_cost(chip, product, 128, sparsity, STEP)
    assert cost.cycles == pytest.approx(cycles / chip.clock)
    assert cost.copies == pytest.approx(copies / chip.bytes)
    assert cost.seconds == max(cost)


def test_cores_share_what_can_be_shared():
    two, one = (
        tpu_estimates.block_cost(CHIPS[name], "forward", 512, 0.5, STEP).cycles
        for name in ("v5p", "v6e")
    )
    assert two == pytest.approx(one / 2, rel=1e-3)  # their clocks differ by less
