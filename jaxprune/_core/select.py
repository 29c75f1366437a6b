"""Exact selection of the k largest scores, without sorting and without gathering.

A score is compared through its order-preserving unsigned image. The k-th largest image is found by
a search on the integer line: each pass reads the scores once and counts, for a few candidate
thresholds, how many images reach them. A count is a plain sum, so that a sharded array needs
scalar all-reduces only and the result does not depend on the sharding. Ties at the threshold go to
the lower flat index, found by the same search on the reversed index.
"""

import contextlib
import contextvars
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import checkify

from jaxprune._core import paths

_PROBES = 7
_WORD = 1 << 16
_MAX_LEAF = (1 << 31) - 1


def ordered_bits(scores: jax.Array) -> jax.Array:
    """Return the unsigned image of an array: same order, NaN lowest, -0.0 equal to 0.0.

    Args:
      scores: floating-point, integer or boolean array of any shape.

    Returns:
      Unsigned integers of the same width and shape (at least 8 bits). The largest image of a
      floating-point number is below the largest unsigned integer, and every number's is above 0.
    """
    if scores.dtype == jnp.bool_:
        return scores.astype(jnp.uint8)
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
    bits = jnp.where(bits == sign, jnp.zeros_like(bits), bits)
    image = jnp.where(bits >= sign, ~bits, bits | sign)
    return jnp.where(nan, jnp.zeros_like(image), image)


class _Count(NamedTuple):
    """A count of up to 2**46 entries in two words, exact without 64-bit integers.

    Shapes: the reduced shape of the selection, times the number of probes in front.
    """

    high: Any  # int32, units of 2**16
    low: Any  # int32, in [0, 2**16)


def _carry(high: jax.Array, low: jax.Array) -> _Count:
    return _Count(high + (low >> 16), low & (_WORD - 1))


def _as_count(value: int | jax.Array) -> _Count:
    if isinstance(value, int):
        return _Count(jnp.int32(value >> 16), jnp.int32(value & (_WORD - 1)))
    value = jnp.asarray(value, jnp.int32)
    return _Count(value >> 16, value & (_WORD - 1))


def count_words(value: int) -> _Count:
    """Return a count as two int32 words on the host: a k beyond 2**31 that can be tabulated."""
    return _Count(np.int32(value >> 16), np.int32(value & (_WORD - 1)))


def _minus(a: _Count, b: _Count) -> _Count:
    return _carry(a.high - b.high, a.low - b.low)


def _at_least(a: _Count, b: _Count) -> jax.Array:
    return (a.high > b.high) | ((a.high == b.high) & (a.low >= b.low))


def _equal(a: _Count, b: _Count) -> jax.Array:
    return (a.high == b.high) & (a.low == b.low)


def _to_float(a: _Count) -> jax.Array:
    return a.high.astype(jnp.float32) * _WORD + a.low.astype(jnp.float32)


def _to_int(a: _Count) -> jax.Array:
    """Return the count as int32 (the caller knows that it fits)."""
    return (a.high << 16) + a.low


def _where(chosen: jax.Array, a: _Count, b: _Count) -> _Count:
    return _Count(jnp.where(chosen, a.high, b.high), jnp.where(chosen, a.low, b.low))


Image = Callable[[Any], jax.Array]
"""Computes the unsigned image of an array of scores; the argument is any value of the pass."""


class _Space(NamedTuple):
    """What one selection runs over: some images, the axes that compete, the mesh axes that split.

    An image is a function, called anew in every pass: it is fused into the count, never stored. ``axes`` is None for all axes of all arrays together,
    else the axes of the only array along which its entries compete; each remaining position is a
    selection of its own.
    """

    images: tuple[Image, ...]
    axes: tuple[int, ...] | None
    mesh_axes: tuple[tuple[str, ...], ...]  # per array, inside shard_map


def _image(scores: jax.Array) -> Image:
    # Tied to a value that changes in every pass, the image cannot be moved out of the search loop,
    # where it would be stored at 4 bytes a weight.
    return lambda fresh: ordered_bits(lax.optimization_barrier((scores, fresh))[0])


def _reduced(
    operands: Sequence[jax.Array],
    starts: Sequence[Any],
    combine: Sequence[Callable[[Any, Any], Any]],
    axes: tuple[int, ...] | None,
) -> list[jax.Array]:
    """Reduce arrays of one shape over the same axes, kept with length 1 unless axes is None.

    One device: one reduction of all operands, a single read of what they are computed from (XLA
    splits or stores single large reductions on CPU, which is 20 times slower). Several devices:
    a reduction each, because one of several operands would all-gather its partial results.
    """
    over = tuple(range(operands[0].ndim)) if axes is None else axes
    if jax.device_count() > 1:
        rows = zip(operands, starts, combine, strict=True)
        results = [lax.reduce(x, start, one, over) for x, start, one in rows]
    else:
        each = lambda a, b: [one(x, y) for one, x, y in zip(combine, a, b, strict=True)]
        results = lax.reduce(list(operands), list(starts), each, over)
    return list(results) if axes is None else [jnp.expand_dims(x, over) for x in results]


def _counts(space: _Space, probes: Sequence[jax.Array]) -> list[_Count]:
    """Count, per probe, the entries that reach it."""
    totals = [_Count(jnp.int32(0), jnp.int32(0)) for _ in probes]
    zeros, adds = [np.int32(0)] * len(probes), [lax.add] * len(probes)
    for image, names in zip(space.images, space.mesh_axes, strict=True):
        array = image(probes[0])
        hits = [(array >= probe.astype(array.dtype)).astype(jnp.int32) for probe in probes]
        found = _reduced(hits, zeros, adds, space.axes)
        found = [lax.psum(x, names) for x in found] if names else found
        totals = [
            _carry(t.high + (x >> 16), t.low + (x & (_WORD - 1)))
            for t, x in zip(totals, found, strict=True)
        ]
    return totals


class _Bracket(NamedTuple):
    """The threshold lies in [low, high]: ``at_low >= k`` entries reach low, ``above < k`` pass high."""

    low: jax.Array  # unsigned, reduced shape
    high: jax.Array
    at_low: _Count
    above: _Count
    done: jax.Array  # bool: at_low == k, or one value is left


def _fraction(width: jax.Array, part: jax.Array) -> jax.Array:
    """Return about ``width * part`` in the unsigned type of width; part is in [0, 1]."""
    bits = width.dtype.itemsize * 8
    scaled = width.astype(jnp.float32) * jnp.clip(part, 0.0, 1.0)
    largest = np.float32(2.0**bits - 2.0 ** (bits - 24))  # rounding up to 2**bits would overflow
    return jnp.minimum(scaled, largest).astype(width.dtype)


def _probe_points(bracket: _Bracket, k: _Count) -> list[jax.Array]:
    """Choose thresholds in (low, high]: three quarters as a guard, the rest round the guess.

    The guess interpolates the counts at the bracket's ends; two distances on each side catch it
    while the distribution inside the bracket is still far from uniform and once it is not.
    """
    width = bracket.high - bracket.low
    inside = jnp.maximum(_to_float(_minus(bracket.at_low, bracket.above)), 1.0)
    part = jnp.clip(_to_float(_minus(bracket.at_low, k)) / inside, 0.0, 1.0)
    near = jnp.minimum(2.0 * jnp.sqrt(part * (1.0 - part) / inside) + 1.0 / inside, 0.02)
    parts = [jnp.full_like(part, quarter) for quarter in (0.25, 0.5, 0.75)]
    far = jnp.maximum(jnp.sqrt(near) * 0.25, 2.0 * near)
    parts += [part - far, part - near, part + near, part + far]
    steps = [_fraction(width, p) for p in parts]
    return [
        bracket.low + jnp.clip(step, jnp.minimum(width, width.dtype.type(1)), width)
        for step in steps
    ]


def _narrow(space: _Space, k: _Count, bracket: _Bracket) -> _Bracket:
    probes = _probe_points(bracket, k)
    low, high, at_low, above = bracket[:4]
    for probe, count in zip(probes, _counts(space, probes), strict=True):
        reaches = _at_least(count, k)
        up = reaches & (probe >= low) & ~bracket.done
        low, at_low = jnp.where(up, probe, low), _where(up, count, at_low)
        down = ~reaches & (probe <= high) & ~bracket.done
        high, above = jnp.where(down, probe - 1, high), _where(down, count, above)
    done = bracket.done | _equal(at_low, k) | (low == high)
    return _Bracket(low, high, at_low, above, done)


def _extremes(space: _Space) -> tuple[jax.Array, jax.Array]:
    """Return the least and the largest image."""
    lows, highs = [], []
    for image, names in zip(space.images, space.mesh_axes, strict=True):
        array = image(np.int32(0))
        ends = [np.asarray(jnp.iinfo(array.dtype).max, array.dtype), np.zeros((), array.dtype)]
        low, high = _reduced([array, array], ends, [lax.min, lax.max], space.axes)
        wide = np.promote_types(array.dtype, np.uint32)
        lows.append((lax.pmin(low, names) if names else low).astype(wide))
        highs.append((lax.pmax(high, names) if names else high).astype(wide))
    return functools.reduce(jnp.minimum, lows), functools.reduce(jnp.maximum, highs)


def _search(space: _Space, k: _Count, size: int) -> _Bracket:
    """Find the largest threshold that at least ``max(k, 1)`` of ``size`` entries reach."""
    low, high = _extremes(space)
    everything, nothing = _spread(_as_count(size), low), _spread(_as_count(0), low)
    one = _as_count(1)
    k = _spread(_where(_at_least(k, one), k, one), low)
    start = _Bracket(low, high, everything, nothing, _equal(everything, k) | (low == high))
    return lax.while_loop(
        lambda bracket: ~jnp.all(bracket.done),
        lambda bracket: _narrow(space, k, bracket),
        start,
    )


def _spread(count: _Count, like: jax.Array) -> _Count:
    zero = jnp.zeros_like(like, jnp.int32)  # brings the sharding along, which a broadcast does not
    return _Count(*(zero + word for word in count))


class _Place(NamedTuple):
    """Where entries of one array compete."""

    shape: tuple[int, ...]
    axes: tuple[int, ...] | None
    names: tuple[str, ...]  # mesh axes, inside shard_map


def _places_left(tied: jax.Array, place: _Place, fresh: Any) -> jax.Array:
    """Return n for the first of the n entries that compete down to 1 for the last; 0 if not tied.

    ``tied`` is a boolean array whose sharding the result takes.
    """
    shape, axes, names = place
    last, _ = lax.optimization_barrier((np.uint32(_competing(*place)), fresh))
    left = tied.astype(jnp.uint32) * last
    stride = 1
    for axis in sorted(range(len(shape)) if axes is None else axes, reverse=True):
        step, _ = lax.optimization_barrier((np.uint32(stride), fresh))  # see _image
        left = left - lax.broadcasted_iota(jnp.uint32, shape, axis) * step
        stride *= shape[axis]
    if names:  # the position of this shard, so that places differ between shards
        left = left - lax.axis_index(names).astype(jnp.uint32) * np.uint32(stride)
    return jnp.where(tied, left, jnp.zeros_like(left))


def _competing(shape: tuple[int, ...], axes: tuple[int, ...] | None, names: tuple[str, ...]) -> int:
    """Return how many entries of one array compete, over all its shards."""
    over = range(len(shape)) if axes is None else axes
    return math.prod(shape[a] for a in over) * math.prod(lax.axis_size(name) for name in names)


class _Ties(NamedTuple):
    """Entries of one array at the threshold: int32, reduced shape."""

    wanted: jax.Array
    found: jax.Array


def _first_tied(image: Image, threshold: jax.Array, tied: _Ties, place: _Place) -> jax.Array:
    """Keep the first ``wanted`` of the entries that equal the threshold, in one array."""

    def reverse(fresh: Any) -> jax.Array:
        return _places_left(image(fresh) == threshold, place, fresh)

    def first() -> jax.Array:
        space = _Space((reverse,), place.axes, (place.names,))
        last = _search(space, _as_count(tied.wanted), _competing(*place)).low
        return reverse(last) >= last

    partial = jnp.any((tied.wanted > 0) & (tied.wanted < tied.found))
    kept = lax.cond(partial, first, lambda: image(threshold) == threshold)
    return kept & (tied.wanted > 0)


@functools.partial(jax.jit, static_argnames=("axes", "mesh_axes"))
def _masks(
    scores: tuple[jax.Array, ...],
    k: _Count,
    *,
    axes: tuple[int, ...] | None,
    mesh_axes: tuple[tuple[str, ...], ...],
) -> tuple[jax.Array, ...]:
    images = tuple(_image(x) for x in scores)
    places = [_Place(x.shape, axes, n) for x, n in zip(scores, mesh_axes, strict=True)]
    size = sum(_competing(*place) for place in places)
    bracket = _search(_Space(images, axes, mesh_axes), k, size)
    exact = _equal(bracket.at_low, k)
    wanted = _minus(k, bracket.above)  # how many of the tied entries, over all arrays
    some = _at_least(k, _as_count(1))
    masks = []
    for image, place in zip(images, places, strict=True):
        array = image(bracket.low)
        threshold = bracket.low.astype(array.dtype)
        found = _tied(image, threshold, place)
        here = jnp.where(exact, found, _between(wanted, found))
        tied = _first_tied(image, threshold, _Ties(here, found), place)
        masks.append(((array > threshold) | tied) & some)
        wanted = _minus(wanted, _as_count(found))
    return tuple(masks)


def _tied(image: Image, threshold: jax.Array, place: _Place) -> jax.Array:
    """Count the entries of one array that equal the threshold."""
    array = image(threshold)
    hits = [(array >= threshold).astype(jnp.int32), (array > threshold).astype(jnp.int32)]
    reach, past = _reduced(hits, [np.int32(0)] * 2, [lax.add] * 2, place.axes)
    found = reach - past
    return lax.psum(found, place.names) if place.names else found


def _between(count: _Count, most: jax.Array) -> jax.Array:
    """Return the count clipped to [0, most], as int32."""
    enough = _at_least(count, _as_count(most))
    return jnp.maximum(jnp.where(enough, most, _to_int(count)), 0)


_SPLIT_OVER: contextvars.ContextVar[tuple[str, ...] | None] = contextvars.ContextVar(
    "split_over", default=None
)


@contextlib.contextmanager
def split_over(axis_names: Sequence[str] | None) -> Iterator[None]:
    """Let selections made inside take ``axis_names`` as theirs; None leaves them to the array."""
    token = _SPLIT_OVER.set(None if axis_names is None else tuple(axis_names))
    try:
        yield
    finally:
        _SPLIT_OVER.reset(token)


def shards_of(array: jax.Array) -> int:
    """Return over how many shards an array is split inside ``shard_map``; 1 outside."""
    return math.prod(lax.axis_size(name) for name in _mesh_axes(array, None))


def _mesh_axes(array: jax.Array, axis_names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the mesh axes over which one array is split inside ``shard_map``."""
    axis_names = _SPLIT_OVER.get() if axis_names is None else axis_names
    if axis_names is not None:
        return tuple(axis_names)
    manual = jax.sharding.get_abstract_mesh().manual_axes
    varying = jax.typeof(array).manual_axis_type.varying if manual else ()
    if manual and not varying:
        raise ValueError(
            f"cannot read over which of the mesh axes {tuple(manual)} an array of shape "
            f"{array.shape} is split (shard_map with check_vma=False, or a replicated array). "
            "Pass axis_names= with those axes, or axis_names=() if every shard holds the whole."
        )
    return tuple(name for name in manual if name in varying)


def _checked_k(k: Any, most: int) -> _Count:
    """Return k in two words; static values are checked, traced ones clipped to [0, most]."""
    if isinstance(k, _Count):
        return k
    if isinstance(k, jax.core.Tracer | jax.Array):
        if not jnp.issubdtype(k.dtype, jnp.integer):
            raise TypeError(f"k must be an integer, got dtype {k.dtype}.")
        upper = min(most, _MAX_LEAF)
        return _as_count(jnp.clip(k.astype(jnp.int32), 0, upper))
    try:
        value = operator.index(k)
    except TypeError:
        raise TypeError(f"k must be an integer, got {k!r}.") from None
    if not 0 <= value <= most:
        raise ValueError(f"k must be between 0 and the {most} scores that compete, got {value}.")
    return _as_count(value)


def _check_leaf(path: str, scores: Any) -> None:
    if scores.size > _MAX_LEAF:
        raise ValueError(
            f"{path!r} has {scores.size} scores of shape {scores.shape}; one array may hold at "
            f"most {_MAX_LEAF}. Select along an axis (axis=) or split the array."
        )


def refuse_nan(scores: Any) -> None:
    """Raise on NaN scores: at once outside jit, through ``checkify`` inside.

    Raises:
      ValueError: naming the paths of the leaves that hold NaN.
    """
    for path, leaf in paths.flatten(scores).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        bad = jnp.sum(jnp.isnan(leaf), dtype=jnp.int32)
        name = f"score {path!r}" if path else "the array of scores"
        if isinstance(bad, jax.core.Tracer):
            checkify.debug_check(bad == 0, f"{name} has {{bad}} NaN entries", bad=bad)
        elif int(bad):
            raise ValueError(
                f"{name} has {int(bad)} NaN entries of {leaf.size}. Check the gradients or the "
                "parameters that it was computed from, or replace NaN before the selection."
            )


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

    Args:
      scores: array of any shape; floating-point, integer or boolean, below 2**31 entries.
      k: how many are kept, from 0 to the number of competing scores. A traced integer is clipped
        to that range. With ``axis`` it may be an array that broadcasts to the reduced shape.
      axis: axis or axes along which scores compete; each position of the other axes keeps k of
        its own. None: all scores compete.
      axis_names: inside ``jax.shard_map``, the mesh axes over which the scores are split. Read
        from the array where its type says it; needed with ``check_vma=False``. There k counts
        the whole array, and ties go to the lower shard first.

    Returns:
      Boolean array of the shape of ``scores``, True = kept.

    Raises:
      TypeError: k is not an integer.
      ValueError: k is out of range, a score is NaN (outside jit), or the array is too large.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> jaxprune.top_k_mask(jnp.array([3.0, 1.0, 3.0, 2.0]), 3).tolist()
      [True, False, True, True]
      >>> jaxprune.top_k_mask(jnp.array([[1, 5], [7, 7]]), 1, axis=1).tolist()
      [[False, True], [True, False]]
    """
    scores = jnp.asarray(scores)
    _check_leaf("scores", scores)
    refuse_nan(scores)
    axes = None if axis is None else _normalised(axis, scores.ndim)
    names = _mesh_axes(scores, axis_names)
    if scores.size == 0:
        return jnp.zeros_like(scores, jnp.bool_)
    most = _competing(scores.shape, axes, names)
    (mask,) = _masks((scores,), _checked_k(k, most), axes=axes, mesh_axes=(names,))
    return mask


def _normalised(axis: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if not all(-ndim <= a < ndim for a in axes) or len({a % ndim for a in axes}) < len(axes):
        raise ValueError(f"axis={axis} does not name different axes of an array of rank {ndim}.")
    return tuple(a % ndim for a in axes)


def _common_dtype(leaves: dict[str, jax.Array]) -> Any:
    """Return one type in which the leaves' scores keep their order."""
    dtypes = {path: leaf.dtype for path, leaf in leaves.items()}
    distinct = set(dtypes.values())
    if len(distinct) == 1:
        return distinct.pop()
    if all(jnp.issubdtype(dtype, jnp.floating) for dtype in distinct):
        return jnp.float64 if jnp.dtype(jnp.float64) in distinct else jnp.float32
    shown = ", ".join(f"{path!r}: {dtype}" for path, dtype in dtypes.items())
    raise TypeError(f"scores of different kinds cannot be ranked together ({shown}).")


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
      TypeError: k is not an integer, or the leaves mix integers and floating-point numbers.
      ValueError: k is out of range, a score is NaN (outside jit; the path is named), or a leaf
        is too large.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> scores = {"a": jnp.array([0.1, 0.9]), "b": jnp.array([[0.5, 0.9]])}
      >>> masks = jaxprune.global_top_k_mask(scores, 3)
      >>> masks["a"].tolist(), masks["b"].tolist()
      ([False, True], [[True, True]])
    """
    leaves = {path: jnp.asarray(leaf) for path, leaf in paths.flatten(tree).items()}
    for path, leaf in leaves.items():
        _check_leaf(path, leaf)
    refuse_nan(tree)
    ranked = {path: leaf for path, leaf in leaves.items() if leaf.size}
    masks = {path: jnp.zeros_like(leaf, jnp.bool_) for path, leaf in leaves.items()}
    if ranked:
        common = _common_dtype(ranked)
        arrays = tuple(leaf.astype(common) for leaf in ranked.values())
        names = tuple(_mesh_axes(leaf, axis_names) for leaf in arrays)
        sizes = [_competing(a.shape, None, n) for a, n in zip(arrays, names, strict=True)]
        count = _checked_k(k, sum(sizes))
        found = _masks(arrays, count, axes=None, mesh_axes=names)
        masks |= dict(zip(ranked, found, strict=True))
    return paths.refill(tree, masks)
