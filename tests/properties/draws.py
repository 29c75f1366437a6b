"""Scores as hypothesis draws them: any bit pattern, and few enough of them that many are tied."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

FLOATS = ("float32", "bfloat16", "float16")
INTEGERS = ("int8", "int32", "uint8", "uint32")
DTYPES = (*FLOATS, *INTEGERS, "bool")


def scores(
    shape: tuple[int, ...], dtype: str, *, nan: bool = True
) -> st.SearchStrategy[np.ndarray]:
    """Draw an array: a few values, chosen for each entry at random.

    Args:
      shape: of the array.
      dtype: name of its type.
      nan: whether NaN is drawn.
    """
    return st.builds(
        _arrange,
        st.lists(_values(dtype, nan), min_size=1, max_size=12),
        st.integers(0, 2**32 - 1),
        st.just(shape),
        st.just(jnp.dtype(dtype)),
    )


def _values(dtype: str, nan: bool) -> st.SearchStrategy[int]:
    """Draw bit patterns: any, and those of numbers at the ends and round zero."""
    kind = jnp.dtype(dtype)
    if kind == jnp.bool_:
        return st.integers(0, 1)
    width = 8 * kind.itemsize
    pattern = st.integers(0, 2**width - 1) | st.sampled_from(_special(kind))
    return pattern if nan else pattern.filter(lambda bits: not _is_nan(bits, kind))


def _special(kind: Any) -> list[int]:
    if not jnp.issubdtype(kind, jnp.floating):
        info = jnp.iinfo(kind)
        values = np.array([info.min, info.max, 0, 1], kind)
    else:
        tiny = float(jnp.finfo(kind).smallest_subnormal)
        limits = [float(jnp.finfo(kind).max), float(jnp.finfo(kind).tiny), 1.0, 0.0, tiny]
        plain = [*limits, *(-x for x in limits), np.inf, -np.inf]
        values = np.array(plain, np.float64).astype(kind)
    return [int(bits) for bits in values.view(f"uint{8 * kind.itemsize}")]


def _is_nan(bits: int, kind: Any) -> bool:
    value = np.array([bits], f"uint{8 * kind.itemsize}").view(kind)
    return bool((value != value)[0])


def _arrange(bits: list[int], seed: int, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    pool = np.array(bits, f"uint{8 * kind.itemsize}").view(kind)
    return np.random.default_rng(seed).choice(pool, shape)
