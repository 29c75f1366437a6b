"""The rows that a weight is multiplied with, in the order of the weight's own axes."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.graph.factors import Factor, Piece, merged
from jaxprune.graph.products import FLOWS
from jaxprune.graph.uses import WeightUse


class Rows(NamedTuple):
    """What a weight is multiplied with in one equation."""

    values: jax.Array  # [*batch, tokens, features]
    chosen: jax.Array | None  # [*batch, tokens] bool: rows that meet this member of the batch
    token_dims: tuple[int, ...]  # dimensions of the input that `tokens` flattens


def rows_of(use: WeightUse, eqn: Any, operands: Sequence[Any]) -> Rows:
    """Return the rows of a use: features and batch in the order of the parameter's axes."""
    if use.primitive == "conv_general_dilated":
        return _patches(use, eqn, operands)
    return _rows(use, eqn, operands)


def token_dims(use: WeightUse, eqn: Any) -> tuple[int, ...]:
    """Return the dimensions of the input that are neither summed over nor shared."""
    other = 1 - use.operand
    mine = FLOWS[use.primitive](eqn).roles[use.operand]
    assert mine is not None
    taken = {*mine.partners, *_partner_batch(use, eqn)}
    return tuple(d for d in range(len(eqn.invars[other].aval.shape)) if d not in taken)


def _partner_batch(use: WeightUse, eqn: Any) -> Sequence[int]:
    if use.primitive == "ragged_dot_general":
        return eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers[1][0]
    return eqn.params["dimension_numbers"][1][1 - use.operand]


class _Dims(NamedTuple):
    """A group of an input's dimensions with the digits of the weight along them."""

    dims: list[int]  # of the input
    factors: list[Factor]  # of all of them, in order

    def order(self) -> list[int]:
        """Return the digits' positions in the order of the parameter's axes."""
        keys = [(f.axis, -abs(f.stride)) for f in self.factors]
        return sorted(range(len(keys)), key=keys.__getitem__)


def _rows(use: WeightUse, eqn: Any, operands: Sequence[Any]) -> Rows:
    piece, x = use.piece, operands[1 - use.operand]
    assert piece is not None
    roles = FLOWS[use.primitive](eqn).roles[use.operand]
    assert roles is not None
    tokens = token_dims(use, eqn)
    x = _cut(x, piece, roles.contracted, roles.partners)
    pairs = list(zip(roles.contracted, roles.partners, strict=True))
    features = _group(piece, [p for p in pairs if p[0] not in use.one_hot])
    shared = [p for p in pairs if p[0] in use.one_hot]
    if use.primitive == "dot_general":
        batch = list(zip(roles.batch, _partner_batch(use, eqn), strict=True))
        x = _cut(x, piece, [b for b, _ in batch], [p for _, p in batch])
        shared += batch
    experts = _group(piece, shared)
    x = jnp.transpose(x, [*experts.dims, *tokens, *features.dims])
    count = math.prod(x.shape[len(experts.dims) : len(experts.dims) + len(tokens)])
    sizes = [f.size for f in experts.factors], [f.size for f in features.factors]
    x = x.reshape(*sizes[0], count, *sizes[1])
    lead = experts.order()
    last = [len(lead) + 1 + i for i in features.order()]
    x = jnp.transpose(x, [*lead, len(lead), *last])
    x = x.reshape(*x.shape[: len(lead) + 1], math.prod(sizes[1]))
    if use.primitive == "ragged_dot_general":
        return Rows(x[None], _members(operands[2], count), tokens)
    # Rows of an expert that a one-hot vector did not choose are zero.
    return Rows(x, jnp.any(x != 0, axis=-1) if use.one_hot else None, tokens)


def _group(piece: Piece, pairs: Sequence[tuple[int, int]]) -> _Dims:
    factors = [f for mine, _ in pairs for f in merged(piece.dims[mine])]
    return _Dims([theirs for _, theirs in pairs], factors)


def _cut(x: Any, piece: Piece, mine: Sequence[int], theirs: Sequence[int]) -> Any:
    """Return the part of an input that meets a part of joined weights."""
    for own, other in zip(mine, theirs, strict=True):
        start, size = piece.offsets[own], piece.sizes[own]
        if size != x.shape[other]:
            x = lax.slice_in_dim(x, start, start + size, axis=other)
    return x


def _members(sizes: jax.Array, count: int) -> jax.Array:
    """Return which rows each member of a ragged product is given: [members, rows]."""
    stops = jnp.cumsum(sizes)
    row = lax.broadcasted_iota(stops.dtype, (sizes.shape[0], count), 1)
    return (row >= (stops - sizes)[:, None]) & (row < stops[:, None])


def _patches(use: WeightUse, eqn: Any, operands: Sequence[Any]) -> Rows:
    """Return what a convolution's kernel sees at each place; a group of features is a batch."""
    piece, image, kernel = use.piece, operands[0], operands[1]
    assert piece is not None
    p, groups = eqn.params, eqn.params["feature_group_count"]
    numbers = p["dimension_numbers"]
    inside, *window = numbers.rhs_spec[1:]
    patches = lax.conv_general_dilated_patches(
        image,
        [kernel.shape[d] for d in window],
        p["window_strides"],
        p["padding"],
        lhs_dilation=p["lhs_dilation"],
        rhs_dilation=p["rhs_dilation"],
        dimension_numbers=numbers,
        precision=lax.Precision.HIGHEST,
    )
    # Features come as [channels, *window].
    image_dim, feature, *space = numbers.out_spec
    patches = jnp.transpose(patches, [image_dim, *space, feature])
    count = math.prod(patches.shape[:-1])
    order = _Dims([], [f for d in (inside, *window) for f in merged(piece.dims[d])])
    sizes = [f.size for f in order.factors]
    lead = [groups] if groups > 1 else []
    patches = patches.reshape(count, *lead, *sizes)
    skip = len(lead) + 1
    patches = jnp.transpose(
        patches, [*range(1, skip), 0, *(skip + i for i in order.order())]
    ).reshape(*lead, count, math.prod(sizes))
    return Rows(patches, None, (numbers.lhs_spec[0], *numbers.lhs_spec[2:]))
