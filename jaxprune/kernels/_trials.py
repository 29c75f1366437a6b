"""What an autotuner measures a product with: random operands, and each way to compute it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._core.select import top_k_mask
from jaxprune.formats import PLAIN as PLAIN_LAYOUT
from jaxprune.formats import Bitmap, BlockSparse, NMSparse
from jaxprune.kernels import dispatch, reference, tuning
from jaxprune.patterns import NM

TOLERANCE = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-3}
"""Largest error, in the norm and relative, of a result that counts as right."""

ARRAY, PLAIN = "array", "plain"
"""Names of two forms of a weight: the array, and the format without a kernel's layout."""


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to compute a product.

    Attributes:
      name: of the implementation.
      form: what it multiplies with: `ARRAY`, `PLAIN`, or a kernel's name for its layout.
      call: ``(operands, weight) -> result``.
      config: the kernel's settings; None for those of others.
    """

    name: str
    form: str
    call: Callable[[Any, Any], jax.Array]
    config: Any = None


def pattern_of(format: str) -> tuple[str, tuple[int, int]]:
    """Return ``"nm"``, ``"block"`` or ``"bitmap"``, and the two numbers of a format's name."""
    for kind, mark in (("nm", ":"), ("block", "x")):
        parts = format.split(mark)
        if len(parts) == 2 and all(part.isdigit() for part in parts):
            return kind, (int(parts[0]), int(parts[1]))
    if format == "bitmap":
        return "bitmap", (1, 1)
    raise ValueError(
        f"format must be 'n:m' such as '2:4', 'height x width' such as '128x128', or 'bitmap', got "
        f"{format!r}."
    )


def slots_of(product: tuning.Product) -> int:
    """Return the blocks, or for other formats the weights, that a product's weight keeps."""
    _, (height, width) = pattern_of(product.format)
    size = (product.k // height) * (product.n_out // width)
    if pattern_of(product.format)[0] == "nm":
        size = product.k * product.n_out
    return max(1, round(product.density * size))


def operands(product: tuning.Product, direction: str, key: jax.Array) -> Any:
    """Return normal x, dy, or both, as the direction needs."""
    k, n_out = product.k, product.n_out
    widths = {"forward": k, "input_gradient": n_out, "weight_gradient": k + n_out}
    drawn = jax.random.normal(key, (product.rows, widths[direction]), product.dtype)
    return (drawn[:, :k], drawn[:, k:]) if direction == "weight_gradient" else drawn


def weight(product: tuning.Product, form: str, key: jax.Array) -> Any:
    """Return a random pruned weight in a form; the same weight in each form.

    The largest groups' members, blocks or weights are kept, without a balance between rows or
    columns.
    """
    kind, (a, b) = pattern_of(product.format)
    slots = slots_of(product)
    w = jax.random.normal(key, (product.k, product.n_out)) * product.k**-0.5
    w = w.astype(product.dtype)
    if kind == "nm":
        mask = NM(a, b).mask(jnp.abs(w), a)
    else:
        cells = jnp.square(w).astype(jnp.float32).reshape(w.shape[0] // a, a, w.shape[1] // b, b)
        live = top_k_mask(jnp.sum(cells, (1, 3)), slots)
        mask = jnp.repeat(jnp.repeat(live, a, 0), b, 1)
    w = jnp.where(mask, w, jnp.zeros_like(w))
    if form == ARRAY:
        return w
    if kind == "block":
        return BlockSparse.from_dense(w, mask, block=(a, b), slots=slots)
    if kind == "bitmap":
        return Bitmap.from_dense(w, mask, count=slots)
    layout = PLAIN_LAYOUT if form == PLAIN else dispatch.KernelLayout(form)
    return NMSparse.from_dense(w, mask, n=a, m=b, layout=layout)


def baseline(direction: str) -> Way:
    """Return the product with an ordinary dense weight."""
    return Way("dense", ARRAY, functools.partial(_dense, direction))


def exact(direction: str) -> Way:
    """Return the product that others are held to: sums and result in float32."""
    if direction == "weight_gradient":
        return Way("exact", PLAIN, _exact_blocks)
    return Way("exact", ARRAY, functools.partial(_dense, direction, out=jnp.float32))


def _dense(direction: str, given: Any, w: jax.Array, out: Any = None) -> jax.Array:
    if direction == "weight_gradient":
        a, b, contracted = given[0], given[1], ((0,), (0,))
    else:
        a, b, contracted = given, w, ((1,), (0 if direction == "forward" else 1,))
    return lax.dot_general(
        a,
        b,
        (contracted, ((), ())),
        precision=lax.Precision.HIGHEST if out else None,
        preferred_element_type=out or a.dtype,
    )


def _exact_blocks(given: Any, w: BlockSparse) -> jax.Array:
    whole = _dense("weight_gradient", given, w.data, out=jnp.float32)
    (high, wide), (height, width) = w.grid, w.block
    cells = jnp.swapaxes(whole.reshape(high, height, wide, width), 1, 2)
    return cells[w.rows, w.columns]


def ways(product: tuning.Product, direction: str, most: int | None) -> Iterator[Way]:
    """Yield every way to compute a product with a compressed weight on this machine.

    Args:
      product: which product.
      direction: ``"forward"``, or which gradient.
      most: settings that are tried of a kernel; None for all.
    """
    yield from _plain_ways(pattern_of(product.format)[0], direction)
    for candidate in dispatch.CANDIDATES:
        if _serves(candidate, product):
            for config in _configs(candidate, product, direction, most):
                yield _kernel_way(candidate, product, direction, config)


def _plain_ways(kind: str, direction: str) -> Iterator[Way]:
    made: dict[str, Callable[..., jax.Array]] = {
        "forward": reference.dense,
        "input_gradient": lambda dy, w: _dense("input_gradient", dy, w.todense()),
    }
    if direction in made:
        yield Way(dispatch.DENSE, PLAIN, made[direction])
    blocks: dict[str, Callable[..., jax.Array]] = {
        "forward": reference.block_forward,
        "input_gradient": reference.block_input_gradient,
        "weight_gradient": lambda given, w: reference.block_weight_gradient(given[0], given[1], w),
    }
    if kind == "block":
        yield Way(dispatch.XLA, PLAIN, blocks[direction])


def _serves(candidate: dispatch.Candidate, product: tuning.Product) -> bool:
    if candidate.platform != jax.default_backend():
        return False
    kind, form = pattern_of(product.format)
    if candidate.form != kind:
        return False
    size = (product.rows, product.k, product.n_out, product.dtype)
    last = form if kind == "nm" else (form,)
    return candidate.load().supports(*size, *last, device_kind=product.device) is None


def _configs(
    candidate: dispatch.Candidate, product: tuning.Product, direction: str, most: int | None
) -> list[Any]:
    """Return the default, as None, and other settings; nothing if none is worth timing."""
    if direction != "forward":
        return [None]
    kind, form = pattern_of(product.format)
    size = (product.rows, product.k, product.n_out)
    last = form if kind == "nm" else (product.dtype, form, product.density)
    found = candidate.load().configs(*size, *last)
    return [None, *found[1:]][:most] if found else []


def _kernel_way(
    candidate: dispatch.Candidate, product: tuning.Product, direction: str, config: Any
) -> Way:
    module, kind = candidate.load(), candidate.form
    settings = {} if config is None else {"config": config}
    k, n_out = product.k, product.n_out

    def nm(x: Any, w: NMSparse) -> jax.Array:
        return module.matmul(x, w.packed, n=w.n, m=w.m, n_out=n_out, **settings)

    def forward(x: Any, w: BlockSparse) -> jax.Array:
        place = (w.data, w.rows, w.columns, w.starts)
        return module.forward(x, *place, n_out=n_out, count=w.count, **settings)

    def to_input(dy: Any, w: BlockSparse) -> jax.Array:
        place = (w.data, w.rows, w.columns, w.by_row, w.row_starts)
        return module.input_gradient(dy, *place, k=k, count=w.count)

    def to_weight(given: Any, w: BlockSparse) -> jax.Array:
        place = (w.rows, w.columns)
        return module.weight_gradient(*given, *place, block=w.block, count=w.count)

    blocks = {"forward": forward, "input_gradient": to_input, "weight_gradient": to_weight}
    if kind == "nm":
        return Way(candidate.kernel, candidate.kernel, nm, config)
    return Way(candidate.kernel, PLAIN, blocks[direction], config)
