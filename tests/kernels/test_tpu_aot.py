"""The TPU kernels, compiled for chips that are not there.

Compiling needs the package `libtpu`, which is there for Linux on x86-64 only.
"""

import functools
import importlib.util
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.benchmarks import tpu_aot, tpu_estimates
from experiments.benchmarks.tpu_aot import CHIPS, Region
from jaxprune.kernels import block_tpu, nm_tpu

compiles = pytest.mark.real.with_args(tpu_aot.missing)  # called with one function, it decorates


def array(shape: tuple[int, ...], dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def block_arrays(
    rows: int, k: int, n_out: int, block: tuple[int, int], slots: int, dtype: Any
) -> tuple[Any, ...]:
    """Describe x, dy, the stored blocks and their indices."""
    sizes = (slots, slots, n_out // block[1] + 1, slots, k // block[0] + 1)
    index = (*(array((size,), jnp.int32) for size in sizes), array((), jnp.int32))
    return (
        array((rows, k), dtype),
        array((rows, n_out), dtype),
        array((slots, *block), dtype),
        index,
    )


def products(x: Any, dy: Any, data: Any, index: Any) -> Any:
    """Return a block-sparse product and both its gradients."""
    (across, down, starts, by_row, row_starts, count), block = index, data.shape[1:]
    k, n_out = x.shape[1], dy.shape[1]
    y = block_tpu.forward(x, data, down, across, starts, n_out=n_out, count=count)
    dx = block_tpu.input_gradient(dy, data, down, across, by_row, row_starts, k=k, count=count)
    return y, dx, block_tpu.weight_gradient(x, dy, down, across, block=block, count=count)


def block_step(
    chip: str, rows: int, k: int, n_out: int, block: tuple[int, int], slots: int, dtype: Any
) -> Any:
    """Lower a block-sparse product and both its gradients as one program."""
    return tpu_aot.lowered(chip, products, *block_arrays(rows, k, n_out, block, slots, dtype))


def packed_arrays(n: int, m: int, k: int, n_out: int, kept: Any) -> nm_tpu.Packed:
    """Describe a packed N:M weight."""
    shape = (n_out, k // m, n)
    pack = functools.partial(nm_tpu.pack, m=m)
    return jax.eval_shape(pack, array(shape, kept), array(shape, jnp.uint8))


def nm_step(chip: str, n: int, m: int, rows: int, k: int, n_out: int, dtype: Any, kept: Any) -> Any:
    """Lower an N:M product of a packed weight."""
    config = nm_tpu.default(rows, k, n_out, n, m, device_kind=CHIPS[chip].kind)
    run = functools.partial(nm_tpu.matmul, n=n, m=m, n_out=n_out, config=config)
    return tpu_aot.lowered(chip, run, array((rows, k), dtype), packed_arrays(n, m, k, n_out, kept))


def kernels(program: Any) -> int:
    """Compile a program; return how many kernels it has."""
    assert program.compile() is not None
    return program.as_text().count("@tpu_custom_call(")


@compiles
@pytest.mark.parametrize("chip", CHIPS)
def test_kernels_compile(chip: str):
    assert kernels(block_step(chip, 100, 1024, 768, (128, 128), 12, jnp.bfloat16)) == 3
    assert kernels(nm_step(chip, 2, 4, 8, 2048, 512, jnp.bfloat16, jnp.bfloat16)) == 1


@compiles
def test_kernels_compile_inside_shard_map():
    mesh = Mesh(np.array(tpu_aot.devices("v5e")), ("data",), axis_types=(AxisType.Explicit,))
    split, whole = P("data"), P()

    def run(x: Any, dy: Any, data: Any, index: Any, packed: Any) -> Any:
        y, dx, dw = products(x, dy, data, index)
        return y, dx, jax.lax.psum(dw, "data"), nm_tpu.matmul(x, packed, n=2, m=4, n_out=512)

    _, _, data, index = block_arrays(64, 512, 512, (128, 128), 3, jnp.bfloat16)
    dense = array((64, 512))
    specs = (split, split, whole, whole, whole)
    args = (dense, dense, data, index, packed_arrays(2, 4, 512, 512, jnp.bfloat16))
    described = jax.tree.map(
        lambda spec, tree: jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec)),
            tree,
        ),
        specs,
        args,
    )
    mapped = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(split, split, whole, split))
    assert kernels(jax.jit(mapped).lower(*described)) == 4


_BLOCKS = [(128, 128), (128, 512), (256, 256), (512, 128), (512, 512), (2048, 2048)]


@compiles
@pytest.mark.slow(reason="compiles 216 kernels")
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("block", _BLOCKS)
def test_block_kernels_compile(chip: str, dtype: Any, block: tuple[int, int]):
    for rows, k, n_out in ((1, 8192, 4096), (1003, 28672, 8192)):
        kind = CHIPS[chip].kind
        assert block_tpu.supports(rows, k, n_out, dtype, block, device_kind=kind) is None
        slots = k // block[0] * n_out // block[1] // 4
        assert kernels(block_step(chip, rows, k, n_out, block, slots, dtype)) == 3


_PATTERNS = [(2, 4), (1, 4), (2, 8), (4, 8), (1, 16), (8, 16), (15, 16), (3, 5)]


@compiles
@pytest.mark.slow(reason="compiles 144 kernels")
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("kinds", [("f", "f"), ("b", "b"), ("b", "i")])
@pytest.mark.parametrize(("n", "m"), _PATTERNS)
def test_nm_kernels_compile(chip: str, kinds: tuple[str, str], n: int, m: int):
    dtypes = {"f": jnp.float32, "b": jnp.bfloat16, "i": jnp.int8}
    dtype, kept = (dtypes[kind] for kind in kinds)
    for rows, k, n_out in ((1, 4096 * m // 4, 4100), (128, 1360 * m, 1000)):
        kind = CHIPS[chip].kind
        assert nm_tpu.supports(rows, k, n_out, dtype, n, m, device_kind=kind) is None
        assert kernels(nm_step(chip, n, m, rows, k, n_out, dtype, kept)) == 1


@compiles
@pytest.mark.slow(reason="compiles 9 kernels with large arrays of indices")
@pytest.mark.parametrize("chip", CHIPS)
def test_as_many_blocks_as_are_taken_fit(chip: str):
    size, block = (256, 32768, 32768), (128, 128)
    assert block_tpu.supports(*size, jnp.bfloat16, block, device_kind=CHIPS[chip].kind) is None
    assert kernels(block_step(chip, *size, block, 65536, jnp.bfloat16)) == 3


@compiles
@pytest.mark.slow(reason="compiles many kernels")
@pytest.mark.parametrize("chip", CHIPS)
def test_all_candidates_compile(chip: str):
    for config in nm_tpu.configs(8, 4096, 4096, 2, 8):
        packed = packed_arrays(2, 8, 4096, 4096, jnp.bfloat16)
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
        tpu_estimates.main([])


def test_the_compilers_settings_are_taken_back():
    with pytest.raises(ValueError), tpu_aot.dumping():
        assert "dump" in os.environ["LIBTPU_INIT_ARGS"]
        raise ValueError
    assert "dump" not in os.environ.get("LIBTPU_INIT_ARGS", "")


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


class Program(NamedTuple):
    text: str

    def as_text(self) -> str:
        return self.text


def test_operations_without_an_estimate_are_left_out():
    program = Program(f'"estimated_cycles":"7" "estimated_cycles":"{2**63 - 1}" "cycles":"5"')
    assert tpu_aot.estimated_cycles(program) == 7


def test_clocks_follow_from_the_published_rates():
    clocks = {name: round(chip.clock / 1e9, 2) for name, chip in CHIPS.items()}
    assert clocks == {"v5e": 1.5, "v5p": 1.75, "v6e": 1.75}


@compiles
@pytest.mark.parametrize("chip", CHIPS)
def test_devices_are_named_as_jax_names_them(chip: str):
    (device,) = tpu_aot.sharding(chip).device_set
    assert device.device_kind == CHIPS[chip].kind
