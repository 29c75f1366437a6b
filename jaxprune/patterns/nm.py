"""N:M: a fixed number of weights in every small group, which hardware multiplies fast."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._core.images import ordered_bits
from jaxprune._core.select import refuse_nan, top_k_mask
from jaxprune.patterns import _common
from jaxprune.types import AxisReader

_PAIRS = 8  # up to here a TPU compares a group's members as arrays of their own
_UNROLLED = 64  # beyond, comparing all pairs of a group costs more than a search


@dataclasses.dataclass(frozen=True, repr=False)
class NM:
    """Keep n of every m consecutive weights along the contracted axis.

    ``n`` counts the weights that are **kept**: ``NM(1, 4)`` has sparsity 0.75. In a gradual
    schedule every group keeps ``⌈density · m⌉`` weights, all of them at first and never fewer
    than n. Ties go to the lower index.

    Args:
      n: weights kept in a group, from 1 to m.
      m: weights in a group.
      axis: the contracted axis, along which groups run. The default is that of Flax: the second
        to last of ``[in, out]`` and HWIO kernels. A kernel that contracts several axes, such as
        ``[heads, head_dim, out]``, takes a tuple: the axes are flattened in the given order.
        A graph of `jaxprune.trace` gives each parameter its own contracted axes and tells which
        axis stacks layers; such a pattern serves whatever knows the parameters' paths, or
        :meth:`at` one path.
      pad: accept a length that is not a multiple of m. The last group is then shorter and keeps n
        of what it has.

    Raises:
      ValueError: n or m out of range, or an axis given twice.
      TypeError: an argument that is not an integer, nor a graph for the axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import patterns
      >>> scores = jnp.array([[1.0, 4.0], [2.0, 3.0], [3.0, 2.0], [4.0, 1.0]])  # [in, out]
      >>> patterns.NM(2, 4).mask(scores, 2)
      Array([[False,  True],
             [False,  True],
             [ True, False],
             [ True, False]], dtype=bool)

    Reference:
      Zhou et al., Learning N:M fine-grained structured sparse neural networks, arXiv:2102.04010.
    """

    n: int
    m: int
    axis: int | tuple[int, ...] | AxisReader = -2
    pad: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        m = _common.as_int("NM", "m", self.m, "the number of weights in a group")
        n = _common.as_int("NM", "n", self.n, "the number of weights kept in a group")
        if m < 1:
            raise ValueError(f"NM: m must be 1 or more, got {m}. It is the size of a group.")
        if not 1 <= n <= m:
            raise ValueError(
                f"NM: n must be in [1, m={m}], got {n}. It is the number of weights kept in every "
                f"group of {m}; 2:4 is NM(2, 4)."
            )
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "m", m)
        if not isinstance(self.axis, AxisReader):
            object.__setattr__(self, "axis", self._checked_axes(self.axis))

    def _checked_axes(self, axis: Any) -> int | tuple[int, ...]:
        given = axis if isinstance(axis, tuple | list) else (axis,)
        expected = "an axis, a tuple of axes, or a graph"
        axes = tuple(_common.as_int("NM", "axis", a, expected) for a in given)
        if len(axes) == 0 or len(set(axes)) < len(axes):
            raise ValueError(
                f"NM: axis must be an axis or a tuple of different axes, got {self.axis!r}. "
                "Groups run along the contracted axes, flattened in the given order."
            )
        return axes[0] if len(axes) == 1 else axes

    def __repr__(self) -> str:
        if isinstance(self.axis, AxisReader):
            return f"{_common.short_repr(dataclasses.replace(self, axis=-2))[:-1]}, axis=graph)"
        return _common.short_repr(self)

    def at(self, path: str) -> "NM":
        """Return the pattern of one parameter, whose axis a graph may have to tell.

        Raises:
          ValueError: the graph does not know the parameter, or its uses disagree.
        """
        if not isinstance(self.axis, AxisReader):
            return self
        return dataclasses.replace(self, axis=self.axis.pattern_axis(path))

    def layer_axis(self, path: str) -> int | None:
        """Return the axis along which a parameter stacks layers, if a graph tells; else None."""
        return self.axis.layer_axis(path) if isinstance(self.axis, AxisReader) else None

    @property
    def final_sparsity(self) -> float:
        """The sparsity of n:m."""
        return 1.0 - self.n / self.m

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        """Raise if groups of m do not fit a parameter's shape.

        Raises:
          ValueError: naming the path, the shape and the remedy.
        """
        rank = len(shape)
        if self.axis == -2 and rank not in (2, 4):
            raise _common.misfit(
                self,
                path,
                shape,
                f"the default axis -2 is the contracted one of [in, out] and HWIO kernels only, "
                f"not at rank {rank}",
                "Give the contracted axis as a non-negative number or a tuple, say with layers= "
                "which axis stacks layers, or exclude this parameter with where=",
            )
        axes = self.axes
        if not all(-rank <= a < rank for a in axes) or len({a % rank for a in axes}) < len(axes):
            raise _common.misfit(
                self,
                path,
                shape,
                f"axis {self.axis} does not name different axes of rank {rank}",
                "Give another axis, or exclude this parameter with where=",
            )
        length = math.prod(shape[a] for a in axes)
        if length % self.m and not self.pad:
            where = tuple(a % rank for a in axes)
            names = f"axis {where[0]} has" if len(where) == 1 else f"axes {where} together have"
            raise _common.misfit(
                self,
                path,
                shape,
                f"{names} length {length}, not a multiple of {self.m}",
                "Pass pad=True, another axis, or exclude this parameter with where=",
            )

    def units(self, shape: tuple[int, ...], density: Any) -> Any:
        """Return the number of weights that every group keeps at a density."""
        del shape
        if isinstance(density, jax.Array):  # 1 − 0.9 is off by 2e-8 in float32
            kept = jnp.ceil(np.float32(self.m) * density - 1e-5).astype(jnp.int32)
            return jnp.clip(kept, self.n, self.m)
        return min(max(math.ceil(self.m * density - 1e-9), self.n), self.m)

    def live(self, shape: tuple[int, ...]) -> int:
        """Return how many weights of a shape are kept in all."""
        length = math.prod(shape[axis] for axis in self.axes)
        whole, tail = divmod(length, self.m)
        return math.prod(shape) // length * (whole * self.n + min(tail, self.n))

    @property
    def axes(self) -> tuple[int, ...]:
        """The contracted axes; a ValueError where a graph would have to tell them."""
        if isinstance(self.axis, AxisReader):
            raise ValueError(
                f"{self!r} has a graph for its axis and is asked about an array without a path. "
                "Take at(path) of it, the pattern of one parameter."
            )
        return self.axis if isinstance(self.axis, tuple) else (self.axis,)

    def mask(self, scores: jax.Array, kept: int | jax.Array) -> jax.Array:
        """Return the mask of the ``kept`` best weights of every group."""
        _ = self.axes  # an array alone tells a graph nothing
        refuse_nan(scores)
        return self._mask(scores, kept)

    @functools.partial(jax.jit, static_argnums=0)  # one program, not one for each member
    def _mask(self, scores: jax.Array, kept: int | jax.Array) -> jax.Array:
        groups, axis = self._split(ordered_bits(scores))
        if self.m > _UNROLLED:
            # A group lies in one shard: whatever splits the weight splits none of its groups.
            chosen = top_k_mask(groups, kept, axis=axis, axis_names=())
        else:
            rank, pairs = (functools.partial(f, axis=axis) for f in (_best, _best_of_pairs))
            tpu = pairs if self.m <= _PAIRS else rank
            chosen = lax.platform_dependent(
                groups, jnp.asarray(kept, jnp.int32), tpu=tpu, default=rank
            )
        return _common.sharded_like(self._join(chosen, scores.shape), scores)

    def holds(self, mask: jax.Array) -> jax.Array:
        """Tell whether every group keeps at most n weights."""
        groups, axis = self._split(mask)
        return jnp.all(jnp.sum(groups, axis, dtype=jnp.int32) <= self.n)

    def _axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the axes that groups span; one is enough where it holds whole groups."""
        axes = tuple(a % len(shape) for a in self.axes)
        return axes if shape[axes[-1]] % self.m else axes[-1:]

    def _split(self, x: jax.Array) -> tuple[jax.Array, int]:
        """Return ``x`` with an axis of m group members, and that axis."""
        axes = self._axes(x.shape)
        if len(axes) == 1:
            return _common.split(x, axes[0], self.m), axes[0] + 1
        for axis in axes[1:]:  # a merged axis can be sharded by its first part alone
            x = _common.whole_groups(x, axis, x.shape[axis])
        x = jnp.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
        x = x.reshape(*x.shape[: -len(axes)], -1)
        return _common.split(x, x.ndim - 1, self.m), x.ndim

    def _join(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Undo :meth:`_split`."""
        axes = self._axes(shape)
        if len(axes) == 1:
            return _common.join(x, axes[0], shape[axes[0]])
        sizes = [shape[a] for a in axes]
        x = _common.join(x, x.ndim - 2, math.prod(sizes))
        x = x.reshape(*x.shape[:-1], *sizes)
        return jnp.moveaxis(x, range(len(shape) - len(axes), len(shape)), axes)


def _best(image: jax.Array, kept: jax.Array, axis: int) -> jax.Array:
    """Tell which members fewer than ``kept`` of their group beat: greater, or equal and earlier."""
    place = lax.broadcasted_iota(jnp.int32, image.shape, axis)
    rank = jnp.zeros_like(image, jnp.int32)
    for member in range(image.shape[axis]):
        other = lax.slice_in_dim(image, member, member + 1, axis=axis)
        beats = (other > image) | ((other == image) & (place > np.int32(member)))
        rank = rank + beats.astype(jnp.int32)
    return rank < kept


def _best_of_pairs(image: jax.Array, kept: jax.Array, axis: int) -> jax.Array:
    """Tell the same: a pair is compared once, and nothing of a weight's size is stored."""
    size = image.shape[axis]
    members = [lax.slice_in_dim(image, i, i + 1, axis=axis) for i in range(size)]
    rank = [jnp.zeros_like(member, jnp.int32) for member in members]
    for i in range(size):
        for j in range(i + 1, size):
            later = (members[j] > members[i]).astype(jnp.int32)
            rank[i] = rank[i] + later
            rank[j] = rank[j] + np.int32(1) - later
    return lax.concatenate([each < kept for each in rank], axis)
