"""``sparse_matmul``: multiply with a compressed weight."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap
from jax.dtypes import float0

from jaxprune.formats import Bitmap, BlockSparse, NMSparse
from jaxprune.kernels import dispatch, reference
from jaxprune.kernels.dispatch import Choice, KernelLayout

Format = NMSparse | BlockSparse | Bitmap


def sparse_matmul(
    x: jax.Array,
    w: Format,
    *,
    bias: jax.Array | None = None,
    implementation: str | None = None,
    config: Any = None,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """Multiply with a compressed weight: ``x @ w + bias``.

    It is differentiable. The gradient of ``w`` is a format of the same structure: gradients of the
    stored values, and ``float0`` for indices; nothing grows where nothing is stored. A group of
    N:M that keeps fewer than n stores a zero in place of the rest, which has a gradient, too. Where
    values are quantised, their scale has a gradient, and they have none: ``float0``, zeros of
    float8.

    The implementation is looked up in a table of timings by the kind of device, the format, dtype
    and sizes. Where dense was faster, or nothing like it was measured, the weight is made dense.
    Quantised values are multiplied as they are, and the sums in float32 with the scale; they go by
    the timings of the weight's own dtype.

    Args:
      x: array ``[..., in]``, float32, bfloat16 or float16.
      w: a format of one matrix ``[in, out]``, of x's dtype. Over stacked layers use `jax.vmap`.
      bias: ``[out]``, of the result's dtype.
      implementation: ``"xla"`` works on what is stored where that is faster than making it dense,
        and is what the others are tested against; ``"dense"`` makes it dense; ``"mosaic_gpu"`` and
        ``"mosaic_tpu"`` are kernels, as are the names of their modules. None chooses.
      config: settings for a kernel that is asked for by name.
      precision: as of `jax.lax.dot_general`; kernels take None only.
      preferred_element_type: dtype of the result, x's if None; kernels take x's only.

    Returns:
      Array ``[..., out]``.

    Raises:
      TypeError: ``w`` is no format, or dtypes differ.
      ValueError: shapes do not fit, or the implementation is unknown, not to be had on this
        platform, or refuses the product.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune
      >>> from jaxprune import formats
      >>> w = formats.NMSparse.from_dense(jnp.array([[0.0], [2.0], [0.0], [3.0]]), n=2, m=4)
      >>> x = jnp.array([[1.0, 10.0, 100.0, 1000.0]])
      >>> jaxprune.kernels.sparse_matmul(x, w).tolist()
      [[3020.0]]
      >>> product = lambda w: jaxprune.kernels.sparse_matmul(x, w).sum()
      >>> jax.grad(product, allow_int=True)(w).packed.values.tolist()
      [[[10.0, 1000.0]]]
    """
    _check(x, w, bias)
    k, n_out = w.shape
    rows = math.prod(x.shape[:-1])
    out = jnp.dtype(x.dtype if preferred_element_type is None else preferred_element_type)
    choice = choice_of(
        rows,
        w,
        implementation=implementation,
        config=config,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    if implementation is None and choice.kernel and dispatch.is_partitioned(x, w):
        choice = Choice()
    flat = x.reshape(rows, k)
    if w.scale is None:
        y: jax.Array = _product(_How(choice, precision, out), flat, w)
    else:
        sums = _How(choice, precision, reference.sums(out))
        y = _scaled_product(sums, flat, w).astype(out)
    y = y.reshape(*x.shape[:-1], n_out)
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (n_out,))


def choice_of(
    rows: int,
    w: Format,
    *,
    implementation: str | None = None,
    config: Any = None,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Choice:
    """Return the implementation that `sparse_matmul` takes.

    Args:
      rows: of x, which has the weight's dtype.
      w: as of `sparse_matmul`, as are the others.
      implementation: asked for, or None.
      config: of a kernel.
      precision: of the product.
      preferred_element_type: of the result.

    Raises:
      ValueError: the implementation is unknown, not to be had here, or refuses the product.
    """
    out = jnp.dtype(w.dtype if preferred_element_type is None else preferred_element_type)
    if precision is None and out == w.dtype and rows:
        return dispatch.choose(rows, w, implementation, config)
    if implementation not in (None, "xla", "dense"):
        raise ValueError(
            f"implementation={implementation!r} takes rows, and neither precision nor another "
            "preferred_element_type; implementation='xla' takes everything."
        )
    choice = dispatch.choose(rows, w, implementation)
    return Choice() if choice.kernel else choice


@dataclasses.dataclass(frozen=True)
class _How:
    choice: Choice
    precision: Any
    out: Any


def _scaled_product(how: _How, x: jax.Array, w: Format) -> jax.Array:
    """Return the product with quantised values: a scale of a column may wait for its sum."""
    values = jax.lax.stop_gradient(dataclasses.replace(w, scale=None, dense_dtype=None))
    if how.choice.kernel is None:
        values = values.astype(x.dtype)  # exact: 8 bits fit into all floats
    y: jax.Array = _product(how, x, values)
    return y.astype(how.out) * w.scale[None, :].astype(how.out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(how: _How, x: jax.Array, w: Format) -> jax.Array:
    kernel, more = how.choice.kernel, {"precision": how.precision, "out": how.out}
    if kernel is not None:
        return _kernel_forward(how.choice, x, w)
    if how.choice.dense:
        return reference.dense(x, w, **more)
    assert isinstance(w, BlockSparse)
    return reference.block_forward(x, w, **more)


def _forward(how: _How, x: jax.Array, w: Format) -> tuple[jax.Array, Any]:
    return _product(how, x, w), (x, w)


def _backward(how: _How, saved: tuple[jax.Array, Format], dy: jax.Array) -> Any:
    x, w = saved
    if isinstance(w, BlockSparse) and (how.choice.kernel is not None or not how.choice.dense):
        return _block_backward(how, x, w, dy.astype(x.dtype))
    _, back = jax.vjp(
        lambda x, w: reference.dense(x, w, precision=how.precision, out=how.out), x, w
    )
    return back(dy)


_product.defvjp(_forward, _backward)


def _block_backward(
    how: _How, x: jax.Array, w: BlockSparse, dy: jax.Array
) -> tuple[jax.Array, BlockSparse]:
    if how.choice.kernel is not None:
        dx, data = _kernel_backward(how.choice, x, w, dy)
    else:
        dx = reference.block_input_gradient(dy, w, precision=how.precision)
        data = reference.block_weight_gradient(x, dy, w, precision=how.precision)
    data = jnp.where(w.live()[:, None, None], data, jnp.zeros((), data.dtype))
    indices = jax.tree.map(lambda leaf: np.zeros(leaf.shape, float0), w)
    return dx, dataclasses.replace(indices, data=data)


def _kernel_forward(choice: Choice, x: jax.Array, w: Format) -> jax.Array:
    assert choice.kernel is not None
    module, n_out = choice.kernel.load(), w.shape[1]
    if isinstance(w, NMSparse):
        n, m = w.n, w.m
        layout = KernelLayout(choice.kernel.kernel)
        packed = w.packed if w.layout == layout else w.relaid(layout).packed
        run = sequential_vmap(
            lambda x, packed: module.matmul(x, packed, n=n, m=m, n_out=n_out, **_settings(choice))
        )
        return run(x, packed)
    assert isinstance(w, BlockSparse)
    run = sequential_vmap(
        lambda count, *arrays: module.forward(
            *arrays, n_out=n_out, count=count, **_settings(choice)
        )
    )
    return run(w.count, x, w.data, w.rows, w.columns, w.starts)


def _settings(choice: Choice) -> dict[str, Any]:
    return {} if choice.config is None else {"config": choice.config}


def _kernel_backward(
    choice: Choice, x: jax.Array, w: BlockSparse, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    assert choice.kernel is not None
    module, k, block = choice.kernel.load(), w.shape[0], w.block
    to_input = sequential_vmap(
        lambda count, *arrays: module.input_gradient(*arrays, k=k, count=count)
    )
    to_weight = sequential_vmap(
        lambda count, *arrays: module.weight_gradient(*arrays, block=block, count=count)
    )
    dx = to_input(w.count, dy, w.data, w.rows, w.columns, w.by_row, w.row_starts)
    return dx, to_weight(w.count, x, dy, w.rows, w.columns).astype(w.dtype)


def _check(x: jax.Array, w: Any, bias: jax.Array | None) -> None:
    if not isinstance(w, Format):
        raise TypeError(
            f"w must be an NMSparse, a BlockSparse or a Bitmap, got {type(w).__name__}. Make one "
            "with its from_dense, or multiply a dense weight with x @ w."
        )
    if len(w.shape) != 2:
        raise ValueError(
            f"w of shape {w.shape} stacks layers; a product takes one. Take it with w[i], or map "
            "over layers with jax.vmap(jaxprune.sparse_matmul)."
        )
    if x.ndim < 1 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"x of shape {x.shape} does not fit w of shape {w.shape}: the last axis of x must have "
            f"length {w.shape[0]}."
        )
    if x.dtype != w.dtype:
        raise TypeError(
            f"x has dtype {x.dtype} and w has {w.dtype}; they must be the same. Convert one: "
            "w.astype(x.dtype), or x.astype(w.dtype)."
        )
    if bias is not None and bias.shape != (w.shape[1],):
        raise ValueError(f"bias must have shape {(w.shape[1],)}, got {bias.shape}.")
