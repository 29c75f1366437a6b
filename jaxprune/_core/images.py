"""Unsigned images: integers that stand in the order of the scores."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def ordered_bits(scores: jax.Array) -> jax.Array:
    """Return the unsigned image of an array: same order, NaN lowest, -0.0 equal to 0.0.

    Args:
      scores: floating-point, integer or boolean array of any shape.

    Returns:
      Unsigned integers of the same shape and width; 8 bits for booleans and narrow integers, 32
      for floating-point numbers of less than 16. The largest image of a floating-point number is
      below the largest unsigned integer, and every number's is above 0.
    """
    scores = _widened(scores)
    if jnp.issubdtype(scores.dtype, jnp.unsignedinteger):
        return scores
    width = scores.dtype.itemsize * 8
    unsigned = jnp.dtype(f"uint{width}")
    sign = np.asarray(1 << (width - 1), unsigned)
    bits = lax.bitcast_convert_type(scores, unsigned)
    if jnp.issubdtype(scores.dtype, jnp.signedinteger):
        return bits ^ sign
    infinity = lax.bitcast_convert_type(jnp.full((), jnp.inf, scores.dtype), unsigned)
    nan = (bits & ~sign) > infinity
    below = lax.bitcast_convert_type(bits, jnp.dtype(f"int{width}")) >> (width - 1)  # all ones or 0
    flipped = bits ^ (lax.bitcast_convert_type(below, unsigned) | sign)
    image = jnp.where(bits == sign, jnp.full_like(bits, sign), flipped)
    return jnp.where(nan, jnp.zeros_like(image), image)


def _widened(scores: jax.Array) -> jax.Array:
    """Return narrow types in a wider one: some 8-bit floats have no infinity or other zeros."""
    dtype = scores.dtype
    if dtype == jnp.bool_:
        return scores.astype(jnp.uint8)
    if jnp.issubdtype(dtype, jnp.floating):
        return scores if jnp.finfo(dtype).bits >= 16 else scores.astype(jnp.float32)
    if jnp.issubdtype(dtype, jnp.integer):
        signed = jnp.issubdtype(dtype, jnp.signedinteger)
        wide = jnp.int8 if signed else jnp.uint8
        return scores if jnp.iinfo(dtype).bits >= 8 else scores.astype(wide)
    raise TypeError(
        f"scores must be floating-point, integer or boolean, got dtype {dtype}: other types have "
        "no order. Score them by a real number, such as jnp.abs(scores)."
    )
