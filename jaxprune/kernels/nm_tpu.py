"""N:M weights times few rows on a TPU: compressed weights are read, and multiplied densely.

Pallas Mosaic TPU. With few rows a product takes the time of reading its weight, and an N:M weight
is n/m of the dense one plus its codes. A tile is read compressed, made dense in fast memory, one
member of all its groups after the other, and multiplied there: y is the sum over members of the
rows' entries at that member times the member. `nm_tpu_layout` tells how the weight is stored.

Making an entry dense takes a few vector instructions whether it is kept or not, so the gain stays
below the ratio of the bytes where a pattern is very sparse. With many rows the dense product is
limited by its arithmetic, which this kernel does not reduce.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxprune.kernels._tpu import FAST_LIMIT, LANES, SUBLANES, pltpu, refusal, result
from jaxprune.kernels.nm_tpu_layout import (
    Code,
    Packed,
    code,
    pack,
    permuted,
    position_bits,
    tile,
    unpack,
)

__all__ = ["Config", "Packed", "configs", "default", "matmul", "pack", "supports", "unpack"]

_MOST_ROWS = 128  # above, the arithmetic of the dense product takes as long as reading it
_MOST_MEMBERS = 16
_X_BYTES = 36 << 20  # of fast memory
_VALUE_BYTES = 18 << 20
_WIDTHS = (1024, 512, 256, LANES)


class Config(NamedTuple):
    """How a product is cut.

    Attributes:
      columns: columns of the weight that one step reads, a multiple of ``chunk``.
      chunk: columns that are made dense at a time.
      depth: groups that are made dense at a time, 128 or 256.
      narrow: make bfloat16 entries dense in 16-bit numbers, two in the place of one.
    """

    columns: int
    chunk: int
    depth: int
    narrow: bool = False


def supports(
    rows: int, k: int, n_out: int, dtype: Any, n: int, m: int, *, device_kind: str
) -> str | None:
    """Return why the kernel cannot serve a product, with the remedy, or None if it can.

    Args:
      rows: rows of x.
      k: columns of x.
      n_out: columns of the result; any number.
      dtype: type of x.
      n: kept members of a group.
      m: members of a group.
      device_kind: the device's own name, as ``jax.Device.device_kind`` has it.

    Returns:
      None, or the rest of a sentence.
    """
    del n_out
    reason = refusal(dtype, device_kind)
    if reason is not None:
        return reason
    if not 0 < n < m <= _MOST_MEMBERS:
        return (
            f"takes groups of at most {_MOST_MEMBERS} members, not {n}:{m}. Use "
            "implementation='xla'."
        )
    if not 1 <= rows <= _MOST_ROWS:
        return f"takes 1 to {_MOST_ROWS} rows, not {rows}. Use implementation='xla'."
    if k % m:
        return f"needs k to be a multiple of {m}, not {k}. Pad x and the weight with zeros."
    if 2 * _whole(rows, SUBLANES) * k * jnp.dtype(dtype).itemsize > _X_BYTES:
        return f"cannot hold {rows} rows of {k} entries in fast memory. Split x along its rows."
    return None


def configs(rows: int, k: int, n_out: int, n: int, m: int) -> list[Config]:
    """Return what is worth trying, the default first.

    Args:
      rows: rows of x.
      k: columns of x.
      n_out: columns of the result.
      n: kept members of a group.
      m: members of a group.
    """
    first = default(rows, k, n_out, n, m)
    depths = [d for d in (128, 256) if tile(k // m, n, m) % d == 0]
    fitting = _widths(tile(k // m, n, m), n)
    widths = [w for w in fitting if w <= max(n_out, LANES)]
    cuts = itertools.product(widths, (128, 256), depths, (False, True))
    tried = [Config(w, min(w, chunk), d, narrow) for w, chunk, d, narrow in cuts]
    return [first, *dict.fromkeys(c for c in tried if c != first)]


def default(rows: int, k: int, n_out: int, n: int, m: int, *, device_kind: str = "") -> Config:
    """Return steps that read enough to outlast what a step costs.

    Args:
      rows: rows of x.
      k: columns of x.
      n_out: columns of the result.
      n: kept members of a group.
      m: members of a group.
      device_kind: the device's own name. Units of v6e multiply by 256 × 256 entries, older ones
        by 128 × 128, and compute with 16-bit numbers, which older ones convert.
    """
    del rows
    whole, size = _whole(n_out, LANES), tile(k // m, n, m)
    widths = [width for width in _widths(size, n) if width <= 1024]
    columns = next(width for width in widths if -whole % width * 8 <= whole)
    if "v6" in device_kind:
        return Config(columns, min(columns, 256), min(size, 256), narrow=True)
    chunk = LANES if n > 1 and m < 8 else min(columns, 256)
    return Config(columns, chunk, LANES, narrow=n > 3)


def _widths(size: int, n: int) -> list[int]:
    """Return how many columns a step may read of tiles of so many groups: their values fit."""
    most = _VALUE_BYTES // (2 * n * size * 4)
    return [width for width in (2048, *_WIDTHS) if width <= most]


def _whole(a: int, unit: int) -> int:
    return -(-a // unit) * unit


def matmul(
    x: jax.Array,
    packed: Packed,
    *,
    n: int,
    m: int,
    n_out: int,
    config: Config | None = None,
    interpret: Any = False,
) -> jax.Array:
    """Multiply rows by an N:M weight.

    Args:
      x: (rows, K) float32 or bfloat16.
      packed: of `pack`; its values are of the type of ``x``, or int8.
      n: kept members of a group.
      m: members of a group.
      n_out: N, columns of the weight.
      config: how the product is cut; `default` of the first device by default.
      interpret: run on any device: True, or Pallas' ``InterpretParams`` for TPUs.

    Returns:
      (rows, N) of the type of ``x``; sums are in float32.
    """
    rows, k = x.shape
    if config is None:
        config = default(rows, k, n_out, n, m, device_kind=jax.devices()[0].device_kind)
    size = tile(k // m, n, m)
    config = config._replace(depth=math.gcd(config.depth, size))  # it may be another size's
    members = permuted(x, m, packed.values.shape[1])
    return _product(members, packed, (n, m, size), n_out, config, interpret)


def _product(
    x: jax.Array,
    packed: Packed,
    pattern: tuple[int, int, int],
    n_out: int,
    config: Config,
    interpret: Any,
) -> jax.Array:
    """Return (rows, n_out) of (m, rows, groups), the weight, n, m and groups of a tile."""
    n, m, size = pattern
    _, rows, groups = x.shape
    height, per_word = _whole(rows, SUBLANES), code(n, m).per_word
    grid_spec = pl.GridSpec(
        grid=(pl.cdiv(n_out, config.columns), groups // size),
        in_specs=[
            pl.BlockSpec((m, height, groups), lambda j, g: (0, 0, 0)),
            pl.BlockSpec((n, size, config.columns), lambda j, g: (0, g, j)),
            pl.BlockSpec((size // per_word, config.columns), lambda j, g: (g, j)),
        ],
        out_specs=pl.BlockSpec((height, config.columns), lambda j, g: (0, j)),
        scratch_shapes=[pltpu.VMEM((height, config.columns), jnp.float32)],
    )
    return pl.pallas_call(
        functools.partial(_kernel, n=n, m=m, config=config),
        grid_spec=grid_spec,
        out_shape=result((rows, n_out), x.dtype, x, *packed),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=FAST_LIMIT
        ),
        cost_estimate=_cost(x, packed),
        interpret=interpret,
        name=f"nm_{n}_{m}",
    )(x, *packed)


def _cost(x: jax.Array, packed: Packed) -> pl.CostEstimate:
    columns = packed.words.shape[1]
    arrays = (x, *packed, jax.ShapeDtypeStruct((x.shape[1], columns), x.dtype))
    return pl.CostEstimate(
        flops=2 * x.size * columns,
        transcendentals=0,
        bytes_accessed=sum(a.size * a.dtype.itemsize for a in arrays),
    )


def _kernel(
    x: Any, values: Any, words: Any, out: Any, total: Any, *, n: int, m: int, config: Config
) -> None:
    """Add the products of one tile's groups to the sums of its columns."""
    step, size, each = pl.program_id(1), values.shape[1], code(n, m)
    # The sign of a 16-bit number is not for codes.
    narrow = config.narrow and x.dtype == jnp.bfloat16 and each.bits < 16
    kind = jnp.bfloat16 if narrow else jnp.float32

    @pl.when(step == 0)
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    @pl.loop(0, total.shape[1] // config.chunk)
    def _(place: jax.Array) -> None:
        columns = pl.ds(pl.multiple_of(place * config.chunk, LANES), config.chunk)
        sums = []
        for first in range(0, size, config.depth):
            groups = pl.ds(pl.multiple_of(step * size + first, LANES), config.depth)
            kept = [values[i, pl.ds(first, config.depth), columns].astype(kind) for i in range(n)]
            codes = _codes(words[:, columns], first, config.depth, size, each)
            codes = codes.astype(jnp.int16) if narrow else codes
            for i, member in enumerate(_members(kept, codes, m)):
                dense = member.astype(x.dtype)
                sums.append(jnp.dot(x[i, :, groups], dense, preferred_element_type=jnp.float32))
        total[:, columns] += functools.reduce(jnp.add, sums)

    @pl.when(step == pl.num_programs(1) - 1)
    def _() -> None:
        out[...] = total[...].astype(out.dtype)


def _codes(words: jax.Array, first: int, depth: int, size: int, each: Code) -> jax.Array:
    """Return (depth, columns): codes of the groups from ``first`` on, in a tile of ``size``."""
    rows = size // each.per_word
    height = min(rows, depth)
    codes = []
    for start in range(first, first + depth, height):
        place, row = divmod(start, rows)
        codes.append((words[row : row + height] >> (place * each.bits)) & ((1 << each.bits) - 1))
    return jnp.concatenate(codes) if len(codes) > 1 else codes[0]


def _members(kept: list[jax.Array], codes: jax.Array, m: int) -> Iterator[jax.Array]:
    """Yield each member of some groups: a kept value, or zero."""
    by_member = code(len(kept), m).by_member
    return (_by_member if by_member else _by_position)(kept, codes, m)


def _by_member(kept: list[jax.Array], codes: jax.Array, m: int) -> Iterator[jax.Array]:
    """Yield members, taking the next kept value where the member's bit is set."""
    queue = kept
    for i in range(m):
        is_kept = (codes & (1 << i)) != 0
        yield jnp.where(is_kept, queue[0], jnp.zeros_like(queue[0]))
        queue = [jnp.where(is_kept, b, a) for a, b in itertools.pairwise(queue)] + queue[-1:]
        queue = queue[: max(m - i - 1, 1)]


def _by_position(kept: list[jax.Array], codes: jax.Array, m: int) -> Iterator[jax.Array]:
    """Yield members, taking the kept value whose position the member is."""
    bits, n = position_bits(m), len(kept)
    places = [(codes >> (p * bits)) & ((1 << bits) - 1) for p in range(n)]
    for i in range(m):
        dense = jnp.zeros_like(kept[0])
        for p in range(max(0, n - (m - i)), min(n, i + 1)):  # positions rise
            dense = jnp.where(places[p] == i, kept[p], dense)
        yield dense
