"""What the kernels for TPUs need of the machine and of jax."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu

pltpu: Any = tpu  # not type-checked: it differs between versions of jax

LANES = 128  # of a vector register
SUBLANES = 16  # rows of a register of 16-bit numbers, a multiple of those of one of 32
FAST_LIMIT = 60 << 20  # bytes; v5p has 64 MiB, the least of v5e, v5p and v6e

_KINDS = ("TPU v5", "TPU v6")  # a v5e is a "TPU v5 lite", a v5p a "TPU v5", a v6e a "TPU v6 lite"
_DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))


def refusal(dtype: Any, device_kind: str) -> str | None:
    """Return why no TPU kernel can serve a type on a device, with the remedy, or None."""
    if not device_kind.startswith(_KINDS):
        return f"needs a TPU v5e, v5p or v6e, not {device_kind}. Use implementation='xla'."
    if jnp.dtype(dtype) not in _DTYPES:
        return f"needs float32 or bfloat16, not {jnp.dtype(dtype).name}. Convert x and the weight."
    return None


def result(shape: tuple[int, ...], dtype: Any, *operands: jax.Array) -> jax.ShapeDtypeStruct:
    """Describe a kernel's result, which inside `jax.shard_map` varies where an operand does."""
    names = (jax.typeof(operand).manual_axis_type.varying for operand in operands)
    kind = jax.sharding.ManualAxisType(varying=frozenset().union(*names))
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)
