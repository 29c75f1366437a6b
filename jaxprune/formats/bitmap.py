"""``Bitmap``: any zeros at all, one bit for each weight and the values of those kept."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune._core.stacks import over_layers
from jaxprune.formats import _checks, _scales
from jaxprune.formats._compressed import Compressed

_OWNER = "Bitmap"


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "bits", "scale"],
    meta_fields=["columns", "dense_dtype"],
)
@dataclasses.dataclass(frozen=True, repr=False)
class Bitmap(Compressed):
    """Matrices ``[..., in, out]`` with zeros anywhere.

    A pytree; leading axes stack layers, as in `NMSparse`. It saves memory and no time: products
    expand it first. In bfloat16 it takes ``density + 1/16`` of the dense bytes.

    Attributes:
      values: [..., count], the kept weights row by row, zeros after the last; all layers have as
        many as the fullest.
      bits: uint8 [..., in, ceil(out / 8)]; bit i of a byte is column 8 * byte + i.
      columns: length of ``out``.
      scale: as of `NMSparse`.
      dense_dtype: as of `NMSparse`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import formats
      >>> sparse = formats.Bitmap.from_dense(jnp.array([[0.0, 5.0, 0.0], [6.0, 0.0, 7.0]]))
      >>> sparse.values.tolist(), sparse.bits.tolist()
      ([5.0, 6.0, 7.0], [[2], [5]])
      >>> sparse.todense().tolist()
      [[0.0, 5.0, 0.0], [6.0, 0.0, 7.0]]
    """

    values: Any
    bits: Any
    columns: int
    scale: Any = None
    dense_dtype: np.dtype[Any] | None = None

    @classmethod
    def from_dense(
        cls, w: Any, mask: Any = None, *, count: int | None = None, path: str | None = None
    ) -> "Bitmap":
        """Compress a weight.

        Inside ``jit``, where nothing can be raised, a weight that does not fit becomes NaN as a
        whole; `jaxprune.debug_checks` says so.

        Args:
          w: array ``[..., in, out]`` of floats.
          mask: boolean, True = kept, of w's shape; None keeps what is not zero (−0.0 is zero).
          count: room for values of each matrix; as many as the fullest layer keeps by default. It
            must be given inside ``jit``.
          path: the weight's name, for errors.

        Returns:
          The compressed weight.

        Raises:
          ValueError: something outside the mask is not zero, or count is too small or missing.
          TypeError: w is not of floats.
        """
        w, mask = _checks.weight_and_mask(_OWNER, w, mask, path)
        kept = _kept(w != 0 if mask is None else mask)
        count = _count(kept, count, path)
        values, bits, outside, over = _compressed(w, mask, count)
        _checks.refuse_outside(_OWNER, outside, w, mask, path)
        _checks.refuse(
            over,
            lambda: (
                f"{_OWNER}: count={count} is too small for {_checks.called(path)}: it keeps "
                f"{int(kept.max())} weights. Leave count out, or pass {int(kept.max())}."
            ),
        )
        return cls(values, bits, w.shape[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, ``(*layers, in, out)``."""
        return (*self.bits.shape[:-1], self.columns)

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """Dtype of the stored values: the weight's, unless they are quantised."""
        return jnp.dtype(self.values.dtype)

    def mask(self) -> jax.Array:
        """Return the mask, True = kept."""
        bits = jnp.unpackbits(self.bits, axis=-1, count=self.columns, bitorder="little")
        return bits.astype(jnp.bool_)

    def todense(self) -> jax.Array:
        """Return the dense weight, bit for bit; quantised values times their scale."""
        return _dense(self)

    def quantize(self, dtype: Any) -> "Bitmap":
        """Return the weight with values of 8 bits, as `NMSparse.quantize` does.

        Args:
          dtype: ``jnp.int8`` or ``jnp.float8_e4m3fn``.

        Returns:
          A format of the same shape and dtype.

        Raises:
          TypeError: the dtype is another.
          ValueError: values are quantised already, or NaN or inf.

        Example:
          >>> import jax.numpy as jnp
          >>> from jaxprune import formats
          >>> w = formats.Bitmap.from_dense(jnp.array([[0.0, 254.0], [-127.0, 3.0]]))
          >>> quantized = w.quantize(jnp.int8)
          >>> quantized.values.tolist(), quantized.scale.tolist()
          ([127, -127, 2], [1.0, 2.0])
        """
        return _scales.checked(_quantized(self, _scales.target(self, dtype)))

    def astype(self, dtype: Any) -> "Bitmap":
        """Return the weight in another dtype; quantised values stay as they are."""
        if self.scale is not None:
            return dataclasses.replace(self, dense_dtype=jnp.dtype(dtype))
        return dataclasses.replace(self, values=self.values.astype(dtype))

    def __repr__(self) -> str:
        return _checks.show(self, f"{self.values.shape[-1]} values", *_scales.told(self))


@jax.jit
def _kept(mask: jax.Array) -> jax.Array:
    return jnp.sum(mask, (-1, -2), dtype=jnp.int32)


@functools.partial(jax.jit, static_argnums=2)
def _compressed(w: jax.Array, mask: jax.Array | None, count: int) -> tuple[jax.Array, ...]:
    """Return values and bits, and whether something is outside the mask or over the count."""
    outside = _checks.outside(w, mask)
    mask = w != 0 if mask is None else mask
    flat = mask.reshape(*mask.shape[:-2], -1)
    over = jnp.any(_kept(mask) > count)
    place = jnp.where(flat, jnp.cumsum(flat, -1, dtype=jnp.int32) - 1, count)

    def gathered(w: jax.Array, place: jax.Array) -> jax.Array:
        return jnp.zeros(count, w.dtype).at[place].set(w, mode="drop")

    values = over_layers(gathered, w.ndim - 2)(w.reshape(flat.shape), place)
    bits = jnp.packbits(mask, axis=-1, bitorder="little")
    return _checks.poisoned(values, outside | over), bits, outside, over


@jax.jit
def _dense(w: Bitmap) -> jax.Array:
    mask = w.mask()
    flat = mask.reshape(*mask.shape[:-2], -1)
    place = jnp.cumsum(flat, axis=-1, dtype=jnp.int32) - 1

    def spread(values: jax.Array, place: jax.Array) -> jax.Array:
        return values.at[place].get(mode="clip")

    spread = over_layers(spread, mask.ndim - 2)
    dense = jnp.where(flat, spread(w.values, place), jnp.zeros((), w.value_dtype))
    return _scales.applied(dense.reshape(mask.shape), w.scale, w.dtype)


@functools.partial(jax.jit, static_argnums=1)
def _quantized(w: Bitmap, dtype: np.dtype[Any]) -> Bitmap:
    mask, count = w.mask(), w.values.shape[-1]

    def one(mask: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        column = jnp.nonzero(mask.reshape(-1), size=count, fill_value=0)[0] % w.columns
        # Room beyond the last value holds zeros, which are not the largest of column 0.
        largest = jnp.zeros(w.columns, values.dtype).at[column].max(jnp.abs(values))
        scale = _scales.scale_of(largest, dtype)
        return _scales.rounded(values, scale[column], dtype), scale

    values, scale = over_layers(one, mask.ndim - 2)(mask, w.values)
    return dataclasses.replace(w, values=values, scale=scale, dense_dtype=w.dtype)


def _count(kept: jax.Array, count: int | None, path: str | None) -> int:
    if count is not None:
        return _checks.as_size(_OWNER, "count", count, 1)
    if isinstance(kept, Tracer):
        raise ValueError(
            f"{_OWNER}: how many weights {_checks.called(path)} keeps is not known inside jit. "
            "Pass count=, the room for values."
        )
    return max(int(kept.max()), 1)
