"""Equations that a compressed weight passes without being made dense."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.execute.views import IN, OUT, Token
from jaxprune.kernels import dispatch, sparse_matmul
from jaxprune.kernels.sparse_matmul import choice_of

Move = Callable[[Any, Sequence[Any]], "Token | None"]
"""``(equation, operands) -> the result``; None if the weight has to be made dense."""


def _transpose(eqn: Any, operands: Sequence[Any]) -> Token | None:
    weight = operands[0]
    return weight.moved([weight.dims[d] for d in eqn.params["permutation"]])


def _reshape(eqn: Any, operands: Sequence[Any]) -> Token | None:
    if eqn.params["dimensions"] is not None:
        return None
    return operands[0].reshaped(eqn.params["new_sizes"])


def _squeeze(eqn: Any, operands: Sequence[Any]) -> Token | None:
    gone = eqn.params["dimensions"]
    return operands[0].moved([dim for d, dim in enumerate(operands[0].dims) if d not in gone])


def _convert(eqn: Any, operands: Sequence[Any]) -> Token | None:
    dtype, weight = eqn.params["new_dtype"], operands[0]
    if not jnp.issubdtype(dtype, jnp.floating):
        return None
    return Token(weight.path, weight.matrix.astype(dtype), weight.digits, weight.dims)


def _same(eqn: Any, operands: Sequence[Any]) -> Token | None:
    del eqn
    return operands[0]


def _slice(eqn: Any, operands: Sequence[Any]) -> Token | None:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    sizes = [b - a for a, b in zip(starts, limits, strict=True)]
    return _one_layer(operands[0], starts, sizes)


def _dynamic_slice(eqn: Any, operands: Sequence[Any]) -> Token | None:
    weight, *starts = operands
    return _one_layer(weight, starts, eqn.params["slice_sizes"])


def _one_layer(weight: Token, starts: Sequence[Any], sizes: Sequence[int]) -> Token | None:
    cut = [d for d, size in enumerate(sizes) if size != weight.shape[d]]
    if len(cut) == 1 and sizes[cut[0]] == 1 and weight.stacks_along(cut[0]):
        return weight.layer(cut[0], starts[cut[0]], keep=True)
    return None


MOVES: dict[str, Move] = {
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "convert_element_type": _convert,
    "copy": _same,
    "copy_p": _same,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
}


def product(eqn: Any, operands: Sequence[Any], implementation: str | None) -> jax.Array | str:
    """Return the product of an array and a compressed weight, or why it cannot be had."""
    place = next(i for i, operand in enumerate(operands) if isinstance(operand, Token))
    weight, x = operands[place], operands[1 - place]
    contracted, batch = eqn.params["dimension_numbers"]
    if isinstance(x, Token):
        return "it is multiplied with another compressed weight"
    if any(batch):
        return "the product is one for each entry of a batch axis"
    free = [d for d in range(len(weight.dims)) if d not in contracted[place]]
    one = len(weight.matrix.shape) == 2
    if not one or weight.roles(contracted[place]) - {IN} or weight.roles(free) - {OUT}:
        return "the product sums over other axes than the packed ones"
    if x.dtype != weight.matrix.dtype:
        return f"it is {weight.matrix.dtype} and the other operand {x.dtype}"
    asked = {
        "implementation": implementation,
        "precision": eqn.params["precision"],
        "preferred_element_type": eqn.params["preferred_element_type"],
    }
    rows = math.prod(n for d, n in enumerate(x.shape) if d not in contracted[1 - place])
    choice = choice_of(rows, weight.matrix, **asked)
    if choice.kernel is None and choice.dense:
        return _why_dense(rows, implementation)
    y = sparse_matmul(
        _rows(x, contracted[1 - place], weight, contracted[place]), weight.matrix, **asked
    )
    return _result(y, weight, free, first=place == 0)


def _why_dense(rows: int, implementation: str | None) -> str:
    if implementation is not None:
        return f"implementation={implementation!r} multiplies with the dense weight"
    return (
        f"with {rows} row{'s' * (rows != 1)}, nothing is known to be faster than dense on "
        f"{dispatch.device_kind()!r}"
    )


def _rows(x: jax.Array, dims: Sequence[int], weight: Token, against: Sequence[int]) -> jax.Array:
    """Return x with the summed dimensions last, as one axis in the matrix' order."""
    rest = [d for d in range(x.ndim) if d not in dims]
    factors = weight.factors(against)
    x = jnp.transpose(x, (*rest, *dims))
    lead = x.shape[: len(rest)]
    digits = x.reshape(*lead, *(f.size for f in factors))
    order = [len(rest) + i for i in weight.order(factors)]
    digits = jnp.transpose(digits, (*range(len(rest)), *order))
    return digits.reshape(*lead, weight.matrix.shape[0])


def _result(y: jax.Array, weight: Token, free: Sequence[int], *, first: bool) -> jax.Array:
    """Return ``[..., out]`` with the weight's own dimensions, before or after the others."""
    factors = weight.factors(free)
    order = weight.order(factors)
    lead = y.shape[:-1]
    digits = y.reshape(*lead, *(factors[i].size for i in order))
    back = sorted(range(len(order)), key=order.__getitem__)
    digits = jnp.transpose(digits, (*range(len(lead)), *(len(lead) + i for i in back)))
    y = digits.reshape(*lead, *(weight.shape[d] for d in free))
    if not first:
        return y
    return lax.transpose(y, (*range(len(lead), y.ndim), *range(len(lead))))
