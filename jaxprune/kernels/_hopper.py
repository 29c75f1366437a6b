"""What the kernels for NVIDIA Hopper GPUs need of the machine and of jax."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp

MULTIPROCESSORS = 132  # of an H100 SXM and an H200
SHARED_BYTES = 220 * 1024  # of the 227 KiB a block may have; the rest is for barriers

DTYPES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
_NAMES = ("H100", "H200", "H800", "GH200")


def is_hopper(device_kind: str) -> bool:
    """Return whether a device is one, by its own name."""
    return any(name in device_kind for name in _NAMES)


def refusal(dtype: Any, device_kind: str) -> str | None:
    """Return why no Hopper kernel can serve a type on a device, or None."""
    if not is_hopper(device_kind):
        return (
            f"needs an NVIDIA Hopper GPU (H100, H200), not {device_kind!r}: the kernel uses "
            "instructions that other GPUs lack. Use implementation='xla'."
        )
    if jnp.dtype(dtype) not in DTYPES:
        return (
            f"takes bfloat16 or float16, not {jnp.dtype(dtype).name}: the sparse tensor cores "
            "select among four weights of 16 bits only. Cast weights and activations, or use "
            "implementation='xla'."
        )
    return missing()


@functools.cache
def missing() -> str | None:
    """Return what this version of jax lacks for Hopper kernels, or None."""
    try:
        from jax.experimental.pallas import mosaic_gpu
    except ImportError as error:
        return f"needs Pallas Mosaic GPU, which jax {jax.__version__} cannot import here: {error}."
    if "out_type" not in inspect.signature(mosaic_gpu.kernel).parameters:
        return (
            f"needs jax 0.11 or newer, not {jax.__version__}: its Pallas builds kernels by "
            "another interface. Update jax, or use implementation='xla'."
        )
    return None


def ceil_div(a: int, b: int) -> int:
    """Return ⌈a / b⌉."""
    return -(-a // b)
