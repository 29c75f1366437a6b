"""The search for a threshold: count, for a few candidates a pass, how many images reach them.

The images are unsigned integers (`images`), so that the search runs on the integer line. A pass
reads the scores once. A count is a plain sum: a sharded array needs scalar all-reduces only, and
the result does not depend on the sharding.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxprune._core import counts
from jaxprune._core.counts import Count
from jaxprune._core.images import ordered_bits

Image = Callable[[Any], jax.Array]
"""Computes the unsigned image of an array of scores; the argument is any value of the pass."""

Combine = Callable[[Any, Any], Any]


class Space(NamedTuple):
    """What one selection runs over: some images, the axes that compete, the mesh axes that split.

    An image is a function, called anew in every pass: it is fused into the count, never stored.
    ``axes`` is None for all axes of all arrays together, else the axes of the only array along
    which its entries compete; each remaining position is a selection of its own.
    """

    images: tuple[Image, ...]
    axes: tuple[int, ...] | None
    mesh_axes: tuple[tuple[str, ...], ...]  # per array, inside shard_map


class Bracket(NamedTuple):
    """The threshold is in [low, high]: ``at_low`` >= k reach low, ``above`` < k are above high."""

    low: jax.Array  # unsigned, reduced shape
    high: jax.Array
    at_low: Count
    above: Count
    done: jax.Array  # bool: at_low == k, or one value is left


def image_of(scores: jax.Array, dtype: Any) -> Image:
    """Return the image of scores, compared as numbers of ``dtype``."""
    # Tied to a value that changes in every pass, the image cannot be moved out of the search loop,
    # where it would be stored at 4 bytes a weight.
    return lambda fresh: ordered_bits(lax.optimization_barrier((scores, fresh))[0].astype(dtype))


class Ends(NamedTuple):
    """Where a search begins: all images that matter are in [low, high]."""

    low: jax.Array  # unsigned, reduced shape
    high: jax.Array
    at_low: Count  # how many reach low


def ends(space: Space, size: int) -> Ends:
    """Read the least and the largest image of ``size`` entries that compete."""
    low, high = _extremes(space)
    return Ends(low, high, counts.as_count(size))


def search(space: Space, k: Count, within: Ends) -> Bracket:
    """Find a threshold that exactly k entries reach, else the k-th largest image.

    Args:
      space: what is searched.
      k: int32 words, scalar or of the reduced shape; 0 is searched for as 1.
      within: where the threshold is.

    Returns:
      The bracket, done. ``low`` is the threshold; if ``at_low`` is not k, it equals ``high``.
    """
    low, high = within.low, within.high
    everything, nothing = (_spread(n, low) for n in (within.at_low, counts.as_count(0)))
    one = counts.as_count(1)
    k = _spread(counts.where(counts.at_least(k, one), k, one), low)
    start = Bracket(low, high, everything, nothing, counts.equal(everything, k) | (low == high))
    return lax.while_loop(
        lambda bracket: ~jnp.all(bracket.done),
        lambda bracket: _narrow(space, k, bracket),
        start,
    )


def sums(
    conditions: Sequence[jax.Array], axes: tuple[int, ...] | None, names: tuple[str, ...]
) -> list[jax.Array]:
    """Count the entries that meet each of some conditions of one shape; int32, over all shards."""
    hits = [condition.astype(jnp.int32) for condition in conditions]
    found = _reduced(hits, [np.int32(0)] * len(hits), [lax.add] * len(hits), axes)
    return [lax.psum(x, names) for x in found] if names else found


def total(conditions: Sequence[jax.Array], names: tuple[str, ...], shards: int) -> list[jax.Array]:
    """Count as `sums` does over all axes, in arrays of any size: no count wraps round to 0.

    Args:
      conditions: boolean arrays of one shape, inside ``shard_map`` that of a shard.
      names: mesh axes over which the arrays are split, inside ``shard_map``.
      shards: how many there are along them.

    Returns:
      () int32 for each. Of more than 2**31 entries it is exact up to 2**24, and then may be less.
    """
    if conditions[0].size * shards <= counts.MOST:
        return sums(conditions, None, names)
    # A float stops growing where one more is lost; layers counted apart would be stored on a TPU.
    hits = [condition.astype(jnp.float32) for condition in conditions]
    found = _reduced(hits, [np.float32(0)] * len(hits), [lax.add] * len(hits), None)
    found = [lax.psum(x, names) for x in found] if names else found
    return [jnp.minimum(x, np.float32(counts.MOST - 127)).astype(jnp.int32) for x in found]


def _reduced(
    operands: Sequence[jax.Array],
    starts: Sequence[Any],
    combine: Sequence[Combine],
    axes: tuple[int, ...] | None,
) -> list[jax.Array]:
    """Reduce arrays of one shape over the same axes, kept with length 1 unless axes is None.

    One device: one reduction of all operands, a single read of what they are computed from (XLA
    splits or stores single large reductions on CPU, which is 20 times slower). Several devices:
    a reduction each, because one of several operands would all-gather its partial results; a GPU
    too, where XLA merges the siblings and was faster so (2.4 against 4.3 ms for 1e8 scores). A TPU
    too: its programs are compiled for many devices on hosts that have one.
    """
    over = tuple(range(operands[0].ndim)) if axes is None else axes

    def apart(operands: Sequence[jax.Array]) -> list[jax.Array]:
        rows = zip(operands, starts, combine, strict=True)
        return [lax.reduce(x, start, one, over) for x, start, one in rows]

    def together(operands: Sequence[jax.Array]) -> list[jax.Array]:
        def each(a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
            return [one(x, y) for one, x, y in zip(combine, a, b, strict=True)]

        return list(lax.reduce(list(operands), list(starts), each, over))

    if jax.device_count() > 1 or (axes is None and jax.default_backend() == "gpu"):
        results = apart(operands)
    elif isinstance(operands[0], Tracer):  # for which platform, only the compiler knows
        results = lax.platform_dependent(operands, tpu=apart, default=together)
    else:
        results = together(operands)
    return results if axes is None else [jnp.expand_dims(x, over) for x in results]


def _extremes(space: Space) -> tuple[jax.Array, jax.Array]:
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


def _spread(count: Count, like: jax.Array) -> Count:
    zero = jnp.zeros_like(like, jnp.int32)  # brings the sharding along, which a broadcast does not
    return Count(*(zero + word for word in count))


def _narrow(space: Space, k: Count, bracket: Bracket) -> Bracket:
    probes = _probe_points(bracket, k)
    low, high, at_low, above = bracket[:4]
    for probe, count in zip(probes, _counts(space, probes), strict=True):
        reaches = counts.at_least(count, k)
        up = reaches & (probe >= low) & ~bracket.done
        low, at_low = jnp.where(up, probe, low), counts.where(up, count, at_low)
        down = ~reaches & (probe <= high) & ~bracket.done
        high, above = jnp.where(down, probe - 1, high), counts.where(down, count, above)
    done = bracket.done | counts.equal(at_low, k) | (low == high)
    return Bracket(low, high, at_low, above, done)


def _counts(space: Space, probes: Sequence[jax.Array]) -> list[Count]:
    """Count, per probe, the entries that reach it."""
    totals = [counts.as_count(0)] * len(probes)
    for image, names in zip(space.images, space.mesh_axes, strict=True):
        array = image(probes[0])
        found = sums([array >= probe.astype(array.dtype) for probe in probes], space.axes, names)
        totals = [counts.plus(t, counts.as_count(x)) for t, x in zip(totals, found, strict=True)]
    return totals


def _probe_points(bracket: Bracket, k: Count) -> list[jax.Array]:
    """Choose thresholds in (low, high]: three quarters as a guard, one on each side of a guess.

    The guess interpolates the counts at the bracket's ends. More thresholds would save few passes,
    and each makes a pass longer, and its compilation, above all for a TPU.
    """
    width = bracket.high - bracket.low
    inside = jnp.maximum(counts.to_float(counts.minus(bracket.at_low, bracket.above)), 1.0)
    part = jnp.clip(counts.to_float(counts.minus(bracket.at_low, k)) / inside, 0.0, 1.0)
    near = jnp.minimum(2.0 * jnp.sqrt(part * (1.0 - part) / inside) + 1.0 / inside, 0.02)
    parts = [jnp.full_like(part, quarter) for quarter in (0.25, 0.5, 0.75)]
    parts += [part - near, part + near]
    least = jnp.minimum(width, width.dtype.type(1))
    return [bracket.low + jnp.clip(_fraction(width, p), least, width) for p in parts]


def _fraction(width: jax.Array, part: jax.Array) -> jax.Array:
    """Return about ``width * part`` in the unsigned type of width; part is clipped to [0, 1]."""
    bits = width.dtype.itemsize * 8
    scaled = width.astype(jnp.float32) * jnp.clip(part, 0.0, 1.0)
    largest = np.float32(2.0**bits - 2.0 ** (bits - 24))  # rounding up to 2**bits would overflow
    return jnp.minimum(scaled, largest).astype(width.dtype)
