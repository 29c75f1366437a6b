"""``NMSparse``: n kept weights of every m, and where they stand."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._core.stacks import over_layers
from jaxprune.formats import _checks, _scales
from jaxprune.formats._compressed import Compressed
from jaxprune.formats.layouts import PLAIN, Layout, PlainLayout

_OWNER = "NMSparse"


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["packed", "scale"],
    meta_fields=["n", "m", "layout", "matrix", "dense_dtype"],
)
@dataclasses.dataclass(frozen=True, repr=False)
class NMSparse(Compressed):
    """Matrices ``[..., in, out]`` that keep n of every m consecutive weights along ``in``.

    A pytree: leading axes stack layers and stand first in every leaf, so that ``jax.vmap`` and the
    slices of ``lax.scan`` take layers of it, and the shape is read from the leaves. In bfloat16,
    2:4 takes 0.5625 of the dense bytes. A group that keeps fewer than n holds zeros in their place.

    Attributes:
      packed: the arrays, as the layout has them; `layouts.Plain` by default.
      n: weights kept in a group.
      m: weights in a group, at most 16.
      layout: how they lie in memory.
      matrix: ``(in, out)`` for layouts whose arrays do not tell; None for the plain one.
      scale: float32 [..., out], what quantised values are multiplied with; None if they are not.
      dense_dtype: dtype of the weight that quantised values stand for; None if they are not.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import formats
      >>> w = jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0], [4.0, 0.0]], jnp.bfloat16)
      >>> sparse = formats.NMSparse.from_dense(w, n=2, m=4)
      >>> sparse
      NMSparse([4, 2], bfloat16, 2:4)
      >>> sparse.packed.values[:, 0].tolist()
      [[1.0, 4.0], [2.0, 3.0]]
      >>> sparse.nbytes / w.nbytes
      0.625
      >>> bool((sparse.todense() == w).all())
      True
    """

    packed: Any
    n: int
    m: int
    layout: Layout = PLAIN
    matrix: tuple[int, int] | None = None
    scale: Any = None
    dense_dtype: np.dtype[Any] | None = None

    @classmethod
    def from_dense(
        cls,
        w: Any,
        mask: Any = None,
        *,
        n: int,
        m: int,
        layout: Layout = PLAIN,
        path: str | None = None,
    ) -> "NMSparse":
        """Compress a weight.

        Inside ``jit``, where nothing can be raised, a weight that does not fit becomes NaN as a
        whole; `jaxprune.debug_checks` says so.

        Args:
          w: array ``[..., in, out]`` of floats; ``in`` is a multiple of m.
          mask: boolean, True = kept, of w's shape; None keeps what is not zero (−0.0 is zero).
          n: weights kept in a group, 1 to m.
          m: weights in a group, 1 to 16.
          layout: how to store them.
          path: the weight's name, for errors.

        Returns:
          The compressed weight.

        Raises:
          ValueError: a group keeps more than n, something outside the mask is not zero, or a shape
            or number does not fit.
          TypeError: w is not of floats.
        """
        m = _checks.as_size(_OWNER, "m", m, 1, 16)
        n = _checks.as_size(_OWNER, "n", n, 1, m)
        w, mask = _checks.weight_and_mask(_OWNER, w, mask, path)
        k, n_out = w.shape[-2:]
        if k % m:
            raise ValueError(
                f"{_OWNER}: axis -2 of {_checks.called(path)} of shape {w.shape} has length {k}, "
                f"which must be a multiple of m={m}. Pad it with zeros to {k + -k % m}, or leave "
                "the weight dense."
            )
        packed, outside, over = _compressed(w, mask, n, m, layout)
        _checks.refuse_outside(_OWNER, outside, w, mask, path)
        _checks.refuse(over, lambda: _broken(w, mask, n, m, path))
        return cls(packed, n, m, layout, None if isinstance(layout, PlainLayout) else (k, n_out))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, ``(*layers, in, out)``."""
        if self.matrix is None:
            *lead, n_out, groups, _ = self.packed.values.shape
            return (*lead, groups * self.m, n_out)
        return (*self._lead(self.matrix), *self.matrix)

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """Dtype of the stored values: the weight's, unless they are quantised."""
        if self.matrix is None:
            return jnp.dtype(self.packed.values.dtype)
        return jnp.dtype(jax.eval_shape(self.unpack)[0].dtype)

    def unpack(self) -> tuple[jax.Array, jax.Array]:
        """Return values ``[..., out, groups, n]`` and uint8 positions in their groups.

        Quantised values come without their scale.
        """
        *lead, k, n_out = self.shape
        unpack = functools.partial(self.layout.unpack, n=self.n, m=self.m, k=k, n_out=n_out)
        return over_layers(unpack, len(lead))(self.packed)

    def todense(self) -> jax.Array:
        """Return the dense weight, bit for bit; quantised values times their scale."""
        return _dense(self)

    def quantize(self, dtype: Any) -> "NMSparse":
        """Return the weight with values of 8 bits, and a scale for each output column.

        The scale is the column's largest magnitude, divided by the dtype's (127 or 448), and values
        are rounded to the nearest: symmetric quantisation by the absolute maximum. `dtype` stays,
        and `todense` returns values times scales. Scales have gradients, quantised values none.

        Args:
          dtype: ``jnp.int8`` or ``jnp.float8_e4m3fn``.

        Returns:
          A format of the same shape and dtype, in the plain layout.

        Raises:
          TypeError: the dtype is another.
          ValueError: values are quantised already, or NaN or inf; inside ``jit``, where nothing can
            be raised, such a column becomes NaN.

        Example:
          >>> import jax.numpy as jnp
          >>> from jaxprune import formats
          >>> w = formats.NMSparse.from_dense(jnp.array([[0.0], [-50.0], [0.0], [254.0]]), n=2, m=4)
          >>> quantized = w.quantize(jnp.int8)
          >>> quantized, quantized.packed.values.tolist(), quantized.scale.tolist()
          (NMSparse([4, 1], float32, 2:4, int8 values), [[[-25, 127]]], [2.0])
        """
        return _scales.checked(_quantized(self, _scales.target(self, dtype)))

    def relaid(self, layout: Layout) -> "NMSparse":
        """Return the same weight in another layout.

        Args:
          layout: how to store it, such as `PLAIN`.

        Returns:
          A format of the same shape.
        """
        return self._with(*self.unpack(), layout)

    def astype(self, dtype: Any) -> "NMSparse":
        """Return the weight in another dtype; quantised values stay as they are."""
        if self.scale is not None:
            return dataclasses.replace(self, dense_dtype=jnp.dtype(dtype))
        values, positions = self.unpack()
        return self._with(values.astype(dtype), positions, self.layout)

    def __repr__(self) -> str:
        return _checks.show(self, f"{self.n}:{self.m}", *_scales.told(self))

    def _with(self, values: jax.Array, positions: jax.Array, layout: Layout) -> "NMSparse":
        *lead, k, n_out = self.shape
        packed = over_layers(functools.partial(layout.pack, m=self.m), len(lead))
        matrix = None if isinstance(layout, PlainLayout) else (k, n_out)
        packed = packed(values, positions)
        return dataclasses.replace(self, packed=packed, layout=layout, matrix=matrix)

    def _lead(self, matrix: tuple[int, int]) -> tuple[int, ...]:
        """Return the layer axes: what the arrays have beyond those of one matrix."""
        one = _packed_shapes(self.layout, self.n, self.m, matrix)
        leads = set()
        for leaf, like in zip(jax.tree.leaves(self.packed), one, strict=True):
            extra = len(leaf.shape) - len(like)
            leads.add(tuple(leaf.shape[:extra]) if tuple(leaf.shape[extra:]) == like else None)
        if len(leads) != 1 or None in leads:
            raise ValueError(
                f"{_OWNER}: the arrays of {self.layout} are not those of a matrix of {matrix[0]} "
                f"inputs and {matrix[1]} outputs: something has cut or reshaped them. Use "
                "relaid(formats.PLAIN) first; only layers can be taken out of another layout."
            )
        return next(iter(leads))


@functools.lru_cache
def _packed_shapes(layout: Layout, n: int, m: int, matrix: tuple[int, int]) -> Any:
    """Return the shapes of the arrays of one matrix."""
    k, n_out = matrix
    values = jax.ShapeDtypeStruct((n_out, k // m, n), jnp.bfloat16)
    positions = jax.ShapeDtypeStruct((n_out, k // m, n), jnp.uint8)
    found = jax.eval_shape(functools.partial(layout.pack, m=m), values, positions)
    return [tuple(leaf.shape) for leaf in jax.tree.leaves(found)]


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _compressed(
    w: jax.Array, mask: jax.Array | None, n: int, m: int, layout: Layout
) -> tuple[Any, jax.Array, jax.Array]:
    """Return the arrays, and whether something is outside the mask or over n in a group."""
    outside = _checks.outside(w, mask)
    mask = w != 0 if mask is None else mask
    live = _groups(mask, m)
    over = jnp.any(jnp.sum(live, -1, dtype=jnp.int32) > n)
    positions = _positions(live, n)
    values = _taken(_groups(jnp.where(mask, w, jnp.zeros_like(w)), m), positions)
    pack = functools.partial(layout.pack, m=m)
    values = _checks.poisoned(values, outside | over)
    return over_layers(pack, w.ndim - 2)(values, positions), outside, over


@jax.jit
def _dense(w: NMSparse) -> jax.Array:
    values, positions = w.unpack()
    place = jnp.arange(w.m, dtype=jnp.uint8).reshape((1,) * (values.ndim - 1) + (w.m,))
    groups = jnp.zeros((*values.shape[:-1], w.m), values.dtype)
    for i in range(w.n):
        groups = jnp.where(positions[..., i : i + 1] == place, values[..., i : i + 1], groups)
    dense = jnp.swapaxes(groups.reshape(*groups.shape[:-2], -1), -1, -2)
    return _scales.applied(dense, w.scale, w.dtype)


@functools.partial(jax.jit, static_argnums=1)
def _quantized(w: NMSparse, dtype: np.dtype[Any]) -> NMSparse:
    values, positions = w.unpack()
    scale = _scales.scale_of(jnp.max(jnp.abs(values), (-1, -2)), dtype)
    values = _scales.rounded(values, scale[..., None, None], dtype)
    stored = w._with(values, positions, PLAIN)  # few kernels take quantised values
    return dataclasses.replace(stored, scale=scale, dense_dtype=w.dtype)


def _broken(w: Any, mask: Any, n: int, m: int, path: str | None) -> str:
    live = np.asarray(w) != 0 if mask is None else np.asarray(mask)
    live = np.swapaxes(live, -1, -2)
    count, first = _checks.places(live.reshape(*live.shape[:-1], -1, m).sum(-1) > n)
    return (
        f"{_OWNER}: {_checks.called(path)} is not {n}:{m}: {count} groups of {m} along axis -2 "
        f"keep more than {n}, the first is group {first[-1]} of output {first[-2]}. Pass a mask "
        f"made with pattern=jaxprune.NM({n}, {m}), or another n."
    )


def _groups(w: jax.Array, m: int) -> jax.Array:
    """Return ``[..., out, groups, m]`` of ``[..., in, out]``."""
    w = jnp.swapaxes(w, -1, -2)
    return w.reshape(*w.shape[:-1], w.shape[-1] // m, m)


def _positions(live: jax.Array, n: int) -> jax.Array:
    """Return where n members of each group stand, in rising order: the live, then any others."""
    before = jnp.cumsum(live, axis=-1, dtype=jnp.uint8)
    dead = jnp.cumsum(~live, axis=-1, dtype=jnp.uint8)
    rank = jnp.where(live, before, before[..., -1:] + dead)
    chosen = jnp.cumsum(rank <= np.uint8(n), axis=-1, dtype=jnp.uint8)
    found = [jnp.sum(chosen <= np.uint8(i), axis=-1, dtype=jnp.uint8) for i in range(n)]
    return jnp.stack(found, axis=-1)


def _taken(groups: jax.Array, positions: jax.Array) -> jax.Array:
    """Return the members at the positions: selects, as a gather would not keep a sharding."""
    values = jnp.zeros(positions.shape, groups.dtype)
    for member in range(groups.shape[-1]):
        here = positions == np.uint8(member)
        values = jnp.where(here, groups[..., member : member + 1], values)
    return values
