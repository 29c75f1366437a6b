"""Values of 8 bits with one scale for each output column: symmetric, by the largest magnitude."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.formats import _checks

_LARGEST = {jnp.dtype(jnp.int8): 127.0, jnp.dtype(jnp.float8_e4m3fn): 448.0}
_LEAST = float(jnp.finfo(jnp.float32).tiny)  # a smaller scale would be flushed to zero


def target(w: Any, dtype: Any) -> np.dtype[Any]:
    """Return the dtype that a format's values are to have, checked."""
    owner = type(w).__name__
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found not in _LARGEST:
        names = " or ".join(f"jnp.{known.name}" for known in _LARGEST)
        raise TypeError(f"{owner}: quantize takes {names}, got {dtype!r}.")
    if w.scale is not None:
        raise ValueError(
            f"{owner}: it holds {w.value_dtype.name} values already. Quantize the weight that they "
            "were made of."
        )
    return found


def scale_of(largest: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    """Return float32 scales of columns with these largest magnitudes; NaN if one is not finite."""
    scale = jnp.maximum(largest.astype(jnp.float32) / _LARGEST[dtype], _LEAST)
    return jnp.where(jnp.isfinite(largest), scale, jnp.nan)


def rounded(values: jax.Array, scale: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    """Return the nearest multiples of scales, which broadcast to the values."""
    scaled = values.astype(jnp.float32) / scale
    return (jnp.round(scaled) if dtype == jnp.int8 else scaled).astype(dtype)


def applied(values: jax.Array, scale: jax.Array | None, dtype: Any) -> jax.Array:
    """Return ``[..., in, out]`` values times their columns' scales; without scales, as they are.

    Scales have gradients and quantised values none: JAX would round those of float8 to float8.
    """
    if scale is None:
        return values
    values = lax.stop_gradient(values).astype(jnp.float32)
    return (values * scale[..., None, :]).astype(dtype)


def checked(w: Any) -> Any:
    """Return a quantised format, or raise an error if a scale is NaN."""

    def text() -> str:
        count, first = _checks.places(np.isnan(w.scale))
        return (
            f"{type(w).__name__}: column {first[0] if len(first) == 1 else first} holds NaN or "
            f"inf, the first of {count}; {w.value_dtype.name} values have one finite scale for "
            "each column. Mend the weights first."
        )

    _checks.refuse(_any_nan(w.scale), text)
    return w


def told(w: Any) -> tuple[str, ...]:
    """Return what a format's text says of quantised values."""
    return () if w.scale is None else (f"{w.value_dtype.name} values",)


@jax.jit
def _any_nan(scale: jax.Array) -> jax.Array:
    return jnp.any(jnp.isnan(scale))
