"""Exact selection of the k largest scores, without sorting and without gathering.

A score is compared through its order-preserving unsigned image (`images`). The k-th largest image
is searched for on the integer line (`search`). Ties at the threshold go to the lower flat index,
found by the same search on the reversed index.
"""

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxprune._core import counts, meshes, paths, select_gpu
from jaxprune._core.checks import debug_check
from jaxprune._core.counts import Count
from jaxprune._core.search import Ends, Image, Space, ends, image_of, search, sums


def top_k_mask(
    scores: jax.Array,
    k: int | jax.Array,
    *,
    axis: int | Sequence[int] | None = None,
    axis_names: Sequence[str] | None = None,
) -> jax.Array:
    """Keep exactly the k largest scores.

    Nothing is sorted, and a sharded array is not gathered: the mask has the sharding of the scores
    and is the same on any number of devices. Ties go to the lower flat index; NaN is the lowest.
    The mask has no derivative.

    Args:
      scores: array of any shape; floating-point, integer or boolean. Fewer than 2**31 compete.
      k: how many are kept, from 0 to the number of competing scores. A traced integer is clipped
        to that range. With ``axis`` it may be an array that broadcasts to the shape of a sum over
        ``axis`` with ``keepdims=True``.
      axis: axis or axes along which scores compete; each position of the other axes keeps k of
        its own. None: all scores compete.
      axis_names: inside ``jax.shard_map``, the mesh axes over which the scores are split; k then
        counts the whole array, and ties go to the lower shard first. Read from the array where
        its type says it; needed with ``check_vma=False``, and with ``axis``, where it names the
        mesh axes that split the competing axes.

    Returns:
      Boolean array of the shape of ``scores``, True = kept.

    Raises:
      TypeError: k or axis is not an integer, or the scores have no order.
      ValueError: k or axis is out of range, a score is NaN (outside jit), too many scores compete,
        or inside ``shard_map`` the mesh axes cannot be read.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> jaxprune.top_k_mask(jnp.array([3.0, 1.0, 3.0, 2.0]), 3).tolist()
      [True, False, True, True]
      >>> jaxprune.top_k_mask(jnp.array([[1, 5], [7, 7]]), 1, axis=1).tolist()
      [[False, True], [True, False]]
    """
    scores = lax.stop_gradient(jnp.asarray(scores))
    axes = None if axis is None else _normalised(axis, scores.shape)
    if axes is None:
        names = meshes.mesh_axes(scores, axis_names)
    else:
        names = meshes.mesh_axes_along(axes, scores, axis_names)
    place = _Place(scores.shape, axes, names)
    _check_size("the array of scores", place)
    count = _checked_k(k, place.competing, place.reduced_shape)
    refuse_nan(scores)
    if scores.size == 0:
        return jnp.zeros_like(scores, jnp.bool_)
    (mask,) = _masks((scores,), count, dtype=scores.dtype, axes=axes, mesh_axes=(names,))
    return mask


def global_top_k_mask(
    tree: Any, k: int | jax.Array, *, axis_names: Sequence[str] | None = None
) -> Any:
    """Keep exactly the k largest scores over all leaves of a tree together.

    The leaves are not concatenated: each pass adds up the leaves' counts. Ties go to the earlier
    leaf in tree order, then to the lower flat index.

    Args:
      tree: tree of score arrays. Floating-point leaves of several widths are compared by value.
      k: how many are kept in all, from 0 to the number of scores.
      axis_names: as in `top_k_mask`, for every leaf.

    Returns:
      Tree of boolean arrays with the structure of ``tree``, True = kept.

    Raises:
      TypeError: k is not an integer, or the leaves have different types and are not all
        floating-point.
      ValueError: k is out of range, a score is NaN (outside jit; the path is named), a leaf is
        too large, or inside ``shard_map`` the mesh axes cannot be read.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> scores = {"a": jnp.array([0.1, 0.9]), "b": jnp.array([[0.5, 0.9]])}
      >>> masks = jaxprune.global_top_k_mask(scores, 3)
      >>> masks["a"].tolist(), masks["b"].tolist()
      ([False, True], [[True, True]])
    """
    leaves = {p: lax.stop_gradient(jnp.asarray(x)) for p, x in paths.flatten(tree).items()}
    names = {path: meshes.mesh_axes(leaf, axis_names) for path, leaf in leaves.items()}
    places = {path: _Place(leaf.shape, None, names[path]) for path, leaf in leaves.items()}
    for path, place in places.items():
        _check_size(f"score {path!r}", place)
    count = _checked_k(k, sum(place.competing for place in places.values()), ())
    _refuse_nan(leaves)
    masks = {path: jnp.zeros_like(leaf, jnp.bool_) for path, leaf in leaves.items()}
    ranked = {path: leaf for path, leaf in leaves.items() if leaf.size}
    if ranked:
        found = _masks(
            tuple(ranked.values()),
            count,
            dtype=_common_dtype(ranked),
            axes=None,
            mesh_axes=tuple(names[path] for path in ranked),
        )
        masks |= dict(zip(ranked, found, strict=True))
    return paths.refill(tree, masks)


def refuse_nan(scores: Any) -> None:
    """Raise on NaN scores: at once outside jit, through ``checkify`` inside (see `debug_checks`).

    Raises:
      ValueError: naming the paths of the leaves that hold NaN.
    """
    _refuse_nan(paths.flatten(scores))


def _refuse_nan(leaves: Mapping[str, Any]) -> None:
    for path, leaf in leaves.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        bad = counts.how_many(jnp.isnan(leaf))
        name = f"score {path!r}" if path else "the array of scores"
        if isinstance(bad, Tracer):
            debug_check(bad == 0, f"{name} has {{bad}} NaN entries", bad=bad)
        elif int(bad):
            raise ValueError(
                f"{name} has {int(bad)} NaN entries of {leaf.size}. Check the gradients or the "
                "parameters that it was computed from, or replace NaN before the selection."
            )


class _Place(NamedTuple):
    """Where entries of one array compete."""

    shape: tuple[int, ...]
    axes: tuple[int, ...] | None
    names: tuple[str, ...]  # mesh axes, inside shard_map

    @property
    def competing(self) -> int:
        """How many entries compete, over all shards."""
        over = range(len(self.shape)) if self.axes is None else self.axes
        return math.prod(self.shape[a] for a in over) * meshes.shards(self.names)

    @property
    def reduced_shape(self) -> tuple[int, ...]:
        """The shape of one result for each selection."""
        if self.axes is None:
            return ()
        return tuple(1 if a in self.axes else n for a, n in enumerate(self.shape))


@functools.partial(jax.jit, static_argnames=("dtype", "axes", "mesh_axes"))
def _masks(
    scores: tuple[jax.Array, ...],
    k: Count,
    *,
    dtype: Any,
    axes: tuple[int, ...] | None,
    mesh_axes: tuple[tuple[str, ...], ...],
) -> tuple[jax.Array, ...]:
    """Keep the k largest of all arrays together, compared as numbers of ``dtype``."""
    searched = functools.partial(_searched, dtype=dtype, axes=axes, mesh_axes=mesh_axes)
    if axes is None and select_gpu.serves(scores, dtype):
        return select_gpu.choose(scores, k, mesh_axes, searched)
    return searched(scores, k)


def _searched(
    scores: tuple[jax.Array, ...],
    k: Count,
    *,
    dtype: Any,
    axes: tuple[int, ...] | None,
    mesh_axes: tuple[tuple[str, ...], ...],
) -> tuple[jax.Array, ...]:
    """Select as `_masks` does, by the search."""
    images = tuple(image_of(x, dtype) for x in scores)
    places = [_Place(x.shape, axes, n) for x, n in zip(scores, mesh_axes, strict=True)]
    size = sum(place.competing for place in places)
    space = Space(images, axes, mesh_axes)
    bracket = search(space, k, ends(space, size))
    exact = counts.equal(bracket.at_low, k)
    wanted = counts.minus(k, bracket.above)  # how many of the tied entries, over all arrays
    some = counts.at_least(k, counts.as_count(1))
    masks = []
    for image, place in zip(images, places, strict=True):
        array = image(bracket.low)
        threshold = bracket.low.astype(array.dtype)
        if len(images) == 1:  # then the search has counted them, or they are all kept
            found = counts.to_int(counts.minus(bracket.at_low, bracket.above))
        else:
            reach, past = sums([array >= threshold, array > threshold], axes, place.names)
            found = reach - past
        here = jnp.where(exact, found, counts.between(wanted, found))
        tied = _first_tied(image, threshold, place, wanted=here, found=found)
        masks.append(((array > threshold) | tied) & some)
        wanted = counts.minus(wanted, counts.as_count(found))
    return tuple(masks)


def _first_tied(
    image: Image, threshold: jax.Array, place: _Place, *, wanted: jax.Array, found: jax.Array
) -> jax.Array:
    """Keep the first ``wanted`` of the ``found`` entries of one array that equal the threshold."""

    def reverse(fresh: Any) -> jax.Array:
        return _places_left(image(fresh) == threshold, place, fresh)

    def first() -> jax.Array:
        space = Space((reverse,), place.axes, (place.names,))
        low = jnp.ones_like(wanted, jnp.uint32)
        within = Ends(low, low * np.uint32(place.competing), counts.as_count(found))
        last = search(space, counts.as_count(wanted), within).low
        return reverse(last) >= last

    partial = jnp.any((wanted > 0) & (wanted < found))
    kept = lax.cond(partial, first, lambda: image(threshold) == threshold)
    return kept & (wanted > 0)


def _places_left(tied: jax.Array, place: _Place, fresh: Any) -> jax.Array:
    """Return n for the first of the n entries that compete down to 1 for the last; 0 if not tied.

    ``tied`` is a boolean array whose sharding the result takes.
    """
    shape, axes, names = place
    last, _ = lax.optimization_barrier((np.uint32(place.competing), fresh))
    left = tied.astype(jnp.uint32) * last
    stride = 1
    for axis in sorted(range(len(shape)) if axes is None else axes, reverse=True):
        step, _ = lax.optimization_barrier((np.uint32(stride), fresh))  # see image_of
        left = left - lax.broadcasted_iota(jnp.uint32, shape, axis) * step
        stride *= shape[axis]
    if names:  # the position of this shard, so that places differ between shards
        left = left - lax.axis_index(names).astype(jnp.uint32) * np.uint32(stride)
    return jnp.where(tied, left, jnp.zeros_like(left))


def _checked_k(k: Any, most: int, shape: tuple[int, ...]) -> Count:
    """Return k in two words; static values are checked, traced ones clipped to [0, most]."""
    if isinstance(k, Count):  # computed on the host from the same scores, perhaps tabulated
        return k
    array = isinstance(k, np.ndarray | jax.Array)
    if array and not jnp.issubdtype(k.dtype, jnp.integer):
        raise TypeError(f"k must be an integer, got dtype {k.dtype}.")
    if array and not _broadcasts(k.shape, shape):
        raise ValueError(
            f"k must be one integer or, with axis=, an array that broadcasts to the shape {shape} "
            f"of a sum over axis with keepdims=True; got shape {k.shape}."
        )
    if isinstance(k, Tracer):
        upper = min(most, jnp.iinfo(k.dtype).max)
        return _spread(counts.as_count(jnp.clip(k, k.dtype.type(0), k.dtype.type(upper))), shape)
    try:
        value = np.asarray(k) if array else operator.index(k)
    except TypeError:
        raise TypeError(f"k must be an integer, got {k!r}.") from None
    if not np.all((value >= 0) & (value <= most)):
        raise ValueError(f"k must be between 0 and the {most} scores that compete, got {k}.")
    return _spread(counts.as_count(value), shape)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def _spread(count: Count, shape: tuple[int, ...]) -> Count:
    """Return the count in that shape, unless it is a scalar."""
    return Count(*(word if word.ndim == 0 else jnp.broadcast_to(word, shape) for word in count))


def _check_size(name: str, place: _Place) -> None:
    if place.competing > counts.MOST:
        shards = meshes.shards(place.names)
        split = f" on each of {shards} shards" if shards > 1 else ""
        raise ValueError(
            f"{name} has {place.competing} entries that compete (shape {place.shape}{split}); at "
            f"most {counts.MOST} of one array can. Select along an axis (axis=) or split the array."
        )


def _normalised(axis: int | Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes as different numbers from 0."""
    ndim = len(shape)
    try:
        axes = tuple(operator.index(a) for a in (axis if isinstance(axis, Sequence) else (axis,)))
    except TypeError:
        raise TypeError(f"axis must be an integer or a tuple of them, got {axis!r}.") from None
    if not all(-ndim <= a < ndim for a in axes) or len({a % ndim for a in axes}) < len(axes):
        raise ValueError(
            f"axis={axis} does not name different axes of scores of shape {shape}: give numbers "
            f"from {-ndim} to {ndim - 1}, each axis once."
        )
    return tuple(a % ndim for a in axes)


def _common_dtype(leaves: Mapping[str, jax.Array]) -> Any:
    """Return one type in which the leaves' scores keep their order."""
    distinct = {leaf.dtype for leaf in leaves.values()}
    if len(distinct) == 1:
        return distinct.pop()
    if all(jnp.issubdtype(dtype, jnp.floating) for dtype in distinct):
        return jnp.dtype(jnp.float64 if jnp.dtype(jnp.float64) in distinct else jnp.float32)
    shown = paths.listed(f"{path!r}: {leaf.dtype}" for path, leaf in leaves.items())
    raise TypeError(
        f"scores of different kinds cannot be ranked together ({shown}). Floating-point types may "
        "differ; convert the leaves to one type."
    )
