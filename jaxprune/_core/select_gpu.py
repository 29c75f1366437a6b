"""Exact selection by counting digits: the same masks as the search, in fewer reads on a GPU.

The image of a score (`images`) is resolved 11 bits at a time from the top: one read counts, for
every value of the next digit, the entries that share the digits found so far. Three reads find the
threshold of float32 scores, two that of bfloat16; one more writes the mask. The counts are kept per
chunk of the array, so that the place of the last tied entry that is kept is found by reading one
chunk. Counts of several arrays, or of several shards, are added.

The counting is a Pallas kernel (`select_gpu_kernel`) for NVIDIA Hopper GPUs. It was run on jax
0.11.2 and compiled on 0.12.0.1; where Pallas cannot build it, as on jax 0.10, the search is used.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import custom_batching, lax

from jaxprune._core import counts, meshes
from jaxprune._core.counts import Count
from jaxprune._core.images import ordered_bits

_BITS = 11
_BINS = 1 << _BITS
_TILE_BYTES = 8192  # what a block reads at once: 4 vectors of 16 bytes a thread
_BLOCKS = 132 * 6  # multiprocessors of an H100, blocks whose counters fit into one
_LEAST = 1 << 16  # below this many entries both ways take the time of their launches
_DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))

Masks = Callable[[tuple[jax.Array, ...], Count], tuple[jax.Array, ...]]
Counter = Callable[..., jax.Array]
"""Counts digits as `count_digits` does."""


class _Chunks(NamedTuple):
    """How one array is cut: entries of a tile, tiles of a chunk, chunks."""

    tile: int
    tiles: int
    number: int

    @property
    def entries(self) -> int:
        return self.tile * self.tiles


def _cut(array: jax.Array) -> _Chunks:
    tile = _TILE_BYTES // array.dtype.itemsize
    tiles = -(-array.size // (tile * _BLOCKS))
    return _Chunks(tile, tiles, -(-array.size // (tile * tiles)))


def count_digits(array: jax.Array, query: jax.Array, chunks: _Chunks) -> jax.Array:
    """Count the digits of a vector of scores, per chunk.

    Args:
      array: (n,) scores.
      query: (2,) uint32. An entry counts for the value ``(image >> query[0]) ^ query[1]`` if that
        is below 2**11: the digit, for entries that share the digits above it.
      chunks: how the array is cut.

    Returns:
      (chunks.number, 2**11) int32.
    """
    digit = (ordered_bits(array).astype(jnp.uint32) >> query[0]) ^ query[1]
    chunk = lax.iota(jnp.int32, array.size) // chunks.entries
    zeros = jnp.zeros((chunks.number, _BINS), jnp.int32)
    inside = digit < _BINS
    slot = jnp.where(inside, digit, jnp.uint32(0)).astype(jnp.int32)
    return zeros.at[chunk, slot].add(inside.astype(jnp.int32))


def count_digits_gpu(array: jax.Array, query: jax.Array, chunks: _Chunks) -> jax.Array:
    """Count as `count_digits` does: whole tiles by the kernel, the last entries without it."""
    from jaxprune._core import select_gpu_kernel  # Pallas for GPUs is not on every machine

    rest = array.size % chunks.tile
    tail = count_digits(array[array.size - rest :], query, chunks._replace(number=1))
    if rest == array.size:
        return tail
    table = select_gpu_kernel.digit_counts(
        array, query, tile=chunks.tile, per_block=chunks.tiles, bins=_BINS
    )
    # Added by `where`: XLA 0.11 fails to compile an update in place of what the kernel returns.
    last = lax.broadcasted_iota(jnp.int32, table.shape, 0) == chunks.number - 1
    return table + jnp.where(last, tail, jnp.zeros_like(tail)) if rest else table


def _digits(width: int) -> Iterator[tuple[int, int]]:
    """Yield the shift and the bits of each digit of an image, from the top."""
    while width:
        bits = min(width, _BITS)
        width -= bits
        yield width, bits


def _locate(each: Count, wanted: Count) -> tuple[jax.Array, Count]:
    """Return the first place whose running count reaches ``wanted``, and the count before it."""
    # A sum of 2**11 low words stays below 2**27, so that the words can be summed apart.
    running = counts.carry(*(_running(word) for word in each))
    place = jnp.sum(~counts.at_least(running, wanted), dtype=jnp.int32)
    before = [jnp.where(place > 0, word[jnp.maximum(place - 1, 0)], 0) for word in running]
    return place, Count(*before)


def _running(values: jax.Array) -> jax.Array:
    """Return the running sums of a short vector: one fusion, where `jnp.cumsum` is several."""
    place = lax.iota(jnp.int32, values.size)
    upto = place[None, :] <= place[:, None]
    return jnp.sum(jnp.where(upto, values[None, :], 0), axis=1, dtype=jnp.int32)


class _Threshold(NamedTuple):
    image: jax.Array  # uint32: the k-th largest
    wanted: Count  # how many of the entries equal to it are kept, at least one
    ties: list[jax.Array]  # (chunks,) int32 per array, of this shard: entries equal to it


def _threshold(
    arrays: Sequence[jax.Array], wanted: Count, mesh_axes: Sequence[tuple[str, ...]], count: Counter
) -> _Threshold:
    """Find the k-th largest image of all arrays together, k = ``wanted`` >= 1."""
    found = jnp.uint32(0)
    tables: list[jax.Array] = []
    place = jnp.int32(0)
    for shift, bits in _digits(arrays[0].dtype.itemsize * 8):
        query = jnp.stack([jnp.uint32(shift), found << bits])
        # Values from 2**bits up belong to other entries: a short last digit leaves room for them.
        tables = [count(x, query, _cut(x))[:, : 1 << bits] for x in arrays]
        total = _added(tables, mesh_axes)
        downwards = Count(total.high[::-1], total.low[::-1])
        place, above = _locate(downwards, wanted)
        wanted = counts.minus(wanted, above)
        place = (1 << bits) - 1 - place
        found = (found << bits) | place.astype(jnp.uint32)
    return _Threshold(found, wanted, [table[:, place] for table in tables])


def _added(tables: Sequence[jax.Array], mesh_axes: Sequence[tuple[str, ...]]) -> Count:
    total = counts.as_count(0)
    for table, names in zip(tables, mesh_axes, strict=True):
        found = jnp.sum(table, axis=0, dtype=jnp.int32)
        found = lax.psum(found, names) if names else found
        total = counts.plus(total, counts.as_count(found))
    return total


def _on_lower_shards(found: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """Return the sum of ``found`` over the shards before this one."""
    here = lax.iota(jnp.int32, meshes.shards(names))
    index = lax.axis_index(names)
    everywhere = lax.psum(jnp.where(here == index, found, 0), names)
    return jnp.sum(jnp.where(here < index, everywhere, 0), dtype=jnp.int32)


def _last_kept(array: jax.Array, image: jax.Array, ties: jax.Array, wanted: jax.Array) -> jax.Array:
    """Return the place of the ``wanted``-th entry that equals ``image``, -1 for none."""
    chunks = _cut(array)
    chunk, before = _locate(counts.as_count(ties), counts.as_count(wanted))
    size = min(chunks.entries, array.size)
    start = chunk * chunks.entries
    first = jnp.minimum(start, array.size - size)  # the last chunk may be short
    places = first + lax.iota(jnp.int32, size)
    images = ordered_bits(lax.dynamic_slice(array, (first,), (size,)))
    tied = (images == image.astype(images.dtype)) & (places >= start)
    place = jnp.sum(
        jnp.cumsum(tied.astype(jnp.int32)) < wanted - counts.to_int(before), dtype=jnp.int32
    )
    return jnp.where(wanted > 0, first + place, -1)


def masks(
    scores: tuple[jax.Array, ...],
    k: Count,
    *,
    mesh_axes: tuple[tuple[str, ...], ...],
    count: Counter = count_digits,
) -> tuple[jax.Array, ...]:
    """Keep the k largest of all arrays together, with the tie rule of `select`.

    Args:
      scores: floating-point arrays of one type with at least one entry each.
      k: how many are kept.
      mesh_axes: per array, the mesh axes that split it inside ``shard_map``.
      count: counts the digits of a vector.

    Returns:
      Boolean arrays of the shapes of ``scores``.
    """
    arrays = [x.reshape(-1) for x in scores]
    one = counts.as_count(1)
    some = counts.at_least(k, one)
    found = _threshold(arrays, counts.where(some, k, one), mesh_axes, count)
    wanted = found.wanted
    result = []
    for x, flat, ties, names in zip(scores, arrays, found.ties, mesh_axes, strict=True):
        here = jnp.sum(ties, dtype=jnp.int32)
        lower = _on_lower_shards(here, names) if names else jnp.int32(0)
        all_ties = lax.psum(here, names) if names else here
        kept = counts.between(counts.minus(wanted, counts.as_count(lower)), here)
        last = _last_kept(flat, found.image, ties, kept)
        image = ordered_bits(flat)
        threshold = found.image.astype(image.dtype)
        tied = (image == threshold) & (lax.iota(jnp.int32, flat.size) <= last)
        result.append((((image > threshold) | tied) & some).reshape(x.shape))
        wanted = counts.minus(wanted, counts.as_count(all_ties))
    return tuple(result)


def serves(scores: tuple[jax.Array, ...], dtype: Any) -> bool:
    """Return whether the kernel can be used here, and pays.

    It is used for 2**16 or more float32 or bfloat16 scores on an NVIDIA Hopper GPU that is the
    only device, or inside ``shard_map`` over all mesh axes. Elsewhere an array may be split over
    devices, which a kernel would gather.
    """
    large = dtype in _DTYPES and sum(x.size for x in scores) >= _LEAST
    alike = all(x.dtype == dtype for x in scores)
    return large and alike and _on_hopper() and _is_whole() and _builds()


def choose(
    scores: tuple[jax.Array, ...],
    k: Count,
    mesh_axes: tuple[tuple[str, ...], ...],
    otherwise: Masks,
) -> tuple[jax.Array, ...]:
    """Select by the kernel when compiled for CUDA, else (on the host, under vmap) by the search."""
    kernel = custom_batching.custom_vmap(
        functools.partial(masks, mesh_axes=mesh_axes, count=count_digits_gpu)
    )

    @kernel.def_vmap
    def _(size: int, batched: Any, *args: Any) -> tuple[Any, Any]:  # the kernel has no batched form
        axes = jax.tree.map(lambda b: 0 if b else None, batched)
        out = jax.vmap(otherwise, in_axes=tuple(axes), axis_size=size)(*args)
        return out, jax.tree.map(lambda _: True, out)

    return lax.platform_dependent(scores, k, cuda=kernel, default=otherwise)


def _is_whole() -> bool:
    """Return whether every array is in the memory of one device, where it is traced."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes:
        return set(mesh.manual_axes) == set(mesh.axis_names)
    return jax.device_count() == 1


@functools.cache
def _on_hopper() -> bool:
    if jax.default_backend() != "gpu":
        return False
    return all(getattr(d, "compute_capability", "") == "9.0" for d in jax.local_devices())


@functools.cache
def _builds() -> bool:
    """Return whether this version of Pallas lowers the kernel."""
    array = jax.ShapeDtypeStruct((_TILE_BYTES,), jnp.float32)  # four tiles
    query = jax.ShapeDtypeStruct((2,), jnp.uint32)
    count = jax.jit(lambda x, q: count_digits_gpu(x, q, _cut(x)))
    try:
        count.trace(array, query).lower(lowering_platforms=("cuda",))
    except Exception as error:  # whatever a changed interface raises
        warnings.warn(
            f"jaxprune's selection kernel does not build with jax {jax.__version__} ({error!r}): "
            "the search without a kernel is used, which reads the scores two to three times more.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
