"""The block-sparse kernels compile for the H100 without spilling; the reports are printed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxprune.kernels import block_gpu
from tests.kernels import aot_gpu

SHARED = 232_448  # bytes that a block of the H100 may have
THREADS = 384


def operands(block: tuple[int, int], dtype: type) -> tuple[Any, ...]:
    """Return x, dy, blocks and their index, of a weight of 8 x 12 blocks."""
    down, across, slots = 8, 12, 60
    int32 = [
        aot_gpu.array(shape, jnp.int32)
        for shape in ((slots,), (slots,), (across + 1,), (slots,), (down + 1,))
    ]
    x = aot_gpu.array((2048, down * block[0]), dtype)
    dy = aot_gpu.array((2048, across * block[1]), dtype)
    return x, dy, aot_gpu.array((slots, *block), dtype), *int32


def products(
    block: tuple[int, int], config: block_gpu.Config | None
) -> dict[str, Callable[..., Any]]:
    return {
        "y": lambda x, dy, data, r, c, starts, by_row, row_starts: block_gpu.forward(
            x, data, r, c, starts, n_out=dy.shape[1], config=config
        ),
        "dx": lambda x, dy, data, r, c, starts, by_row, row_starts: block_gpu.input_gradient(
            dy, data, r, c, by_row, row_starts, k=x.shape[1], config=config
        ),
        "dw": lambda x, dy, data, r, c, starts, by_row, row_starts: block_gpu.weight_gradient(
            x, dy, r, c, block=block
        ),
    }


UNION = block_gpu.Config(union=True)
COLUMNS = block_gpu.Config(256, 3, buffer=16)


@pytest.mark.parametrize("product", ["y", "dx", "dw"])
@pytest.mark.parametrize(
    ("block", "config", "dtype"),
    [
        ((128, 128), None, jnp.bfloat16),
        ((128, 128), block_gpu.Config(), jnp.float16),
        ((64, 64), UNION, jnp.bfloat16),
        ((64, 64), COLUMNS, jnp.bfloat16),
        ((256, 64), None, jnp.bfloat16),
    ],
    ids=["128", "128 large tiles", "64 union", "64 columns", "256 x 64"],
)
def test_products_compile(
    product: str, block: tuple[int, int], config: block_gpu.Config | None, dtype: type
) -> None:
    function = products(block, config)[product]
    report = aot_gpu.compile_kernel(function, *operands(block, dtype))
    print(f"{product} {block[0]} x {block[1]} {config} {jnp.dtype(dtype).name}: {report}")
    assert 0 < report.registers <= 65536 // THREADS
    assert report.spill_stores == report.spill_loads == report.stack == 0
    assert 0 < report.shared <= SHARED


@pytest.fixture(autouse=True)
def forget() -> None:
    jax.clear_caches()  # what is in the cache is not assembled, and not reported
