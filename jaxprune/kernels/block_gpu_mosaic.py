"""What the block-sparse kernels for Hopper GPUs share: tiles, rings of stages, the way out.

Pallas Mosaic GPU. Of the three warpgroups of a thread block the last only copies: it fills a ring
of stages in shared memory and runs ahead of the other two, over the ends of output tiles. The
other two multiply. A product is held transposed, (features, tokens): 64 features by up to 256
tokens fill the registers of a warpgroup, and a wide second operand reads shared memory least.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu

from jaxprune.kernels import _hopper

plgpu: Any = mosaic_gpu  # not type-checked: it differs between versions of jax

LANES = 64  # entries of a row of a tile: 128 bytes of 2-byte numbers, the widest swizzle
MULTIPLIERS = 2  # warpgroups that multiply
SHARED_BYTES = 232448  # shared memory of a thread block on Hopper


@dataclasses.dataclass(frozen=True)
class Config:
    """How forward and the gradient of the input are cut.

    Attributes:
      tokens: rows of a warpgroup's tile: 64, 128, 192 or 256.
      stages: steps of 64 contracted entries in flight.
      width: row tiles that run through the columns together.
      buffer: rows of an output buffer; divides ``tokens``.
      union: whether four columns 64 wide share the dense tiles (`block_gpu_union`).
    """

    tokens: int = 256
    stages: int = 4
    width: int = 8
    buffer: int = 64
    union: bool = False


def tile(*shape: int, dtype: Any) -> Any:
    """Return a buffer in shared memory whose last two axes are laid out for TMA and wgmma."""
    transforms = (plgpu.TilingTransform((8, LANES)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def place(linear: Any, rows: int, columns: int, width: int) -> tuple[Any, Any]:
    """Return row and column of a tile, counted through strips of ``width`` rows.

    Tiles that run at the same time then share rows and columns, which stay in the L2 cache. Within
    a strip the columns go from the first to the last.
    """
    strip = linear // (width * columns)
    inside = linear - strip * (width * columns)
    height = jnp.minimum(width, rows - strip * width)
    column = inside // height
    return strip * width + inside - column * height, column


class Ring(NamedTuple):
    """Barriers of the stages: ``full`` when copied, ``empty`` when multiplied."""

    full: Any
    empty: Any
    stages: int

    def stage(self, position: Any) -> Any:
        """Return the stage of a position in the stream of all steps."""
        return lax.rem(position, jnp.int32(self.stages))

    def open(self) -> None:
        """Hand all stages to the copying warpgroup; called by each that multiplies."""
        for stage in range(self.stages):
            plgpu.barrier_arrive(self.empty.at[stage])

    def close(self) -> None:
        """Wait until all stages were multiplied; called by the warpgroup that copies."""
        for stage in range(self.stages):
            plgpu.barrier_wait(self.empty.at[stage])


def ring_types(stages: int, copies: int) -> dict[str, Any]:
    """Return the barriers of a ring whose stages are filled by ``copies`` copies."""
    return {
        "full": plgpu.Barrier(num_arrivals=copies, num_barriers=stages),
        "empty": plgpu.Barrier(num_arrivals=MULTIPLIERS, num_barriers=stages),
    }


TileStep = Callable[..., Any]
"""What a warpgroup does for one tile; the arguments are the kernel's own."""


def specialize(
    ring: Ring, over: Callable[[TileStep], None], copy: TileStep, multiply: TileStep
) -> None:
    """Copy on the last warpgroup, and multiply on the others, with most registers.

    Args:
      ring: the stages between them.
      over: runs one of the two over all tiles of the thread block.
      copy: a tile's copies into the ring.
      multiply: a tile's products of what is in the ring, and its way out.
    """

    def copying() -> None:
        plgpu.set_max_registers(40, action="decrease")
        over(copy)
        ring.close()

    def multiplying() -> None:
        plgpu.set_max_registers(232, action="increase")
        ring.open()
        over(multiply)
        plgpu.wait_smem_to_gmem(0)

    lax.cond(lax.axis_index("wg") == MULTIPLIERS, copying, multiplying)


def over_tiles(tiles: int, blocks: int, body: Callable[[Any, Any], Any]) -> None:
    """Run ``body(tile, position)`` for every tile of this thread block; it returns the position.

    The tiles go round all thread blocks, as cards are dealt.
    """
    block = lax.axis_index("sm")
    mine = (tiles - block + blocks - 1) // blocks
    lax.fori_loop(0, mine, lambda i, position: body(block + i * blocks, position), jnp.int32(0))


def store_transposed(acc: Any, buffers: Any, out: Any, tokens: Any, features: Any) -> None:
    """Write (64, n) registers to out[tokens : tokens + n, features : features + 64].

    Args:
      acc: (64, n) float32.
      buffers: (2, t, 64) shared memory of this warpgroup, used in turn; t divides n.
      out: the result in global memory. What lies past its last row is not written.
      tokens: first row.
      features: first column.
    """
    step = buffers.shape[1]
    for e in range(acc.shape[1] // step):
        plgpu.wait_smem_to_gmem(1, wait_read_only=True)
        buffer = buffers.at[e % 2]
        buffer.T[...] = acc[:, e * step : (e + 1) * step].astype(out.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(
            buffer, out.at[pl.ds(tokens + e * step, step), pl.ds(features, LANES)]
        )


def launch(
    body: Callable[..., None],
    out: jax.ShapeDtypeStruct,
    scratch: dict[str, Any],
    *,
    blocks: int,
    name: str,
    interpret: Any,
    **cluster: Any,
) -> Callable[..., jax.Array]:
    """Return the kernel: ``blocks`` thread blocks of three warpgroups."""
    mode = {} if interpret is None else {"interpret": interpret}
    return plgpu.kernel(
        body,
        out_type=out,
        scratch_types=scratch,
        grid=(blocks,),
        grid_names=("sm",),
        num_threads=MULTIPLIERS + 1,
        thread_name="wg",
        kernel_name=name,
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        **cluster,
        **mode,
    )


def by_load(loads: jax.Array) -> jax.Array:
    """Return the places of ``loads`` from the largest down, ties in order.

    Ranks are counted: for a few hundred columns two small fusions, where a sort is several kernels.
    """
    place = lax.iota(jnp.int32, loads.size)
    mine, other = loads[:, None], loads[None, :]
    first = (other > mine) | ((other == mine) & (place[None, :] < place[:, None]))
    rank = jnp.sum(first, axis=1, dtype=jnp.int32)
    hit = rank[None, :] == place[:, None]
    return jnp.sum(jnp.where(hit, place[None, :], 0), axis=1, dtype=jnp.int32)


@functools.cache
def multiprocessors() -> int:
    """Return the number of multiprocessors of the GPU, or of an H100 where there is none."""
    if jax.default_backend() != "gpu":
        return _hopper.MULTIPROCESSORS
    return int(getattr(jax.local_devices()[0], "core_count", _hopper.MULTIPROCESSORS))
