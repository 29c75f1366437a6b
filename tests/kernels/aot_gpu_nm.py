"""The N:M kernels compile for the H100 without spilling; `make test-gpu-aot` prints the reports."""

import jax
import jax.numpy as jnp
import pytest

from jaxprune.kernels import nm_decode_gpu as decode
from jaxprune.kernels import nm_decode_gpu_layout as layout
from jaxprune.kernels import nm_gemm_gpu as gemm
from tests.kernels import aot_gpu

SHARED = 232_448  # bytes that a block of the H100 may have


def packed(n: int, m: int, k: int, n_out: int, dtype: jnp.dtype) -> layout.Packed:
    p = layout.plan(n, m)
    tiles, chunks = -(-n_out // layout.TILE), -(-k // p.chunk)
    return layout.Packed(
        aot_gpu.array((tiles, chunks, p.loads * 256), dtype),
        aot_gpu.array((tiles, chunks, p.meta_words), jnp.int32),
    )


def check(name: str, report: aot_gpu.Report, threads: int) -> None:
    print(f"{name}: {report}")
    assert 0 < report.registers <= 65536 // threads
    assert report.spill_stores == report.spill_loads == report.stack == 0
    assert 0 < report.shared <= SHARED


@pytest.mark.parametrize(("k", "n_out"), [(8192, 8192), (4096, 14336), (14336, 4096), (11016, 200)])
@pytest.mark.parametrize("rows", [1, 16, 64])
@pytest.mark.parametrize(("n", "m"), decode.PATTERNS)
def test_decode_compiles(n: int, m: int, rows: int, k: int, n_out: int) -> None:
    if k == 11016:
        k = 8 * m * (k // (8 * m))  # with a part of a chunk
    config = decode.default(rows, k, n_out, n, m)
    report = aot_gpu.compile_kernel(
        lambda x, w: decode.matmul(x, w, n=n, m=m, n_out=n_out),
        aot_gpu.array((rows, k), jnp.bfloat16),
        packed(n, m, k, n_out, jnp.dtype(jnp.bfloat16)),
    )
    warps = config.tiles // config.per_warp * config.slices
    check(f"decode {n}:{m} rows {rows} {k} x {n_out} {config}", report, 128 * -(-warps // 4))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    ("rows", "splits"),
    [(4096, 1), (300, 1), (100, 1), (64, 1), (32, 1), (32, 5), (64, 5), (128, 5), (256, 5)],
)
def test_gemm_compiles(rows: int, splits: int, dtype: type) -> None:
    k, n_out = 4160, 4096
    config = gemm.default(rows, k, n_out)._replace(splits=splits)
    report = aot_gpu.compile_kernel(
        lambda x, w: gemm.matmul(x, w, n=2, m=4, n_out=n_out, config=config),
        aot_gpu.array((rows, k), dtype),
        gemm.Packed(
            aot_gpu.array((n_out, k // 2), dtype),
            aot_gpu.array((n_out // 64, 2 * k), jnp.int32),
        ),
    )
    check(f"2:4 rows {rows} splits {splits} {jnp.dtype(dtype).name}", report, 384)


def test_a_kernel_that_needs_too_much_is_seen() -> None:
    greedy = decode.Config(1, 16, 2, 2, 4, 1, 1)  # 512 threads with 300 registers each
    report = aot_gpu.compile_kernel(
        lambda x, w: decode.matmul(x, w, n=2, m=4, n_out=8192, config=greedy),
        aot_gpu.array((64, 4096), jnp.bfloat16),
        packed(2, 4, 4096, 8192, jnp.dtype(jnp.bfloat16)),
    )
    assert report.spill_stores > 0


@pytest.fixture(autouse=True)
def forget() -> None:
    jax.clear_caches()  # what is in the cache is not assembled, and not reported
