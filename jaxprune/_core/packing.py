"""One bit per weight: a boolean mask packed along its last axis."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer


@jax.tree_util.register_pytree_with_keys_class
class PackedMask:
    """A boolean array stored as bits.

    Attributes:
      bits: uint8 array ``[..., ceil(size / 8)]``; bit ``i`` of a byte is entry ``8 * byte + i``.
      size: length of the last axis of the mask (static).
    """

    def __init__(self, bits: Any, size: int) -> None:
        self.bits = bits
        self.size = size

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], int]:
        return ((jax.tree_util.GetAttrKey("bits"), self.bits),), self.size

    @classmethod
    def tree_unflatten(cls, size: int, children: tuple[Any, ...]) -> "PackedMask":
        return cls(children[0], size)

    def __repr__(self) -> str:
        return f"PackedMask(bits={self.bits!r}, size={self.size})"


def is_packed(node: Any) -> bool:
    """Tell whether a node of a tree is a packed mask (for ``is_leaf``)."""
    return isinstance(node, PackedMask)


def pack(mask: jax.Array) -> PackedMask:
    """Pack a boolean array along its last axis."""
    return PackedMask(jnp.packbits(mask, axis=-1, bitorder="little"), mask.shape[-1])


def stored(masks: dict[str, jax.Array], *, packed: bool) -> dict[str, Any]:
    """Return masks by path as a state holds them: packed, if wanted and possible."""
    if not packed:
        return masks
    for path, mask in masks.items():
        check_packable(path, mask)
    return {path: pack(mask) for path, mask in masks.items()}


def unpack(mask: Any) -> jax.Array:
    """Return the boolean array of a packed mask; boolean arrays pass through."""
    if not is_packed(mask):
        return mask
    bits = jnp.unpackbits(mask.bits, axis=-1, count=mask.size, bitorder="little")
    return bits.astype(jnp.bool_)


def check_packable(path: str, mask: jax.Array) -> None:
    """Raise if a mask has no last axis, or its shards along it do not hold whole bytes.

    Explicit mesh axes show in an array's type; automatic ones only in a concrete array.
    """
    if mask.ndim == 0:
        raise ValueError(
            f"packed=True cannot store the mask of {path!r}: a scalar has no axis to pack. "
            "Pass packed=False, or exclude it with where=."
        )
    sharding: Any = jax.typeof(mask).sharding if isinstance(mask, Tracer) else mask.sharding
    spec = getattr(sharding, "spec", ())
    names = spec[mask.ndim - 1] if len(spec) == mask.ndim else None
    if names is None:
        return
    shards = 1
    for name in names if isinstance(names, tuple) else (names,):
        shards *= sharding.mesh.shape[name]
    check_whole_bytes(path, mask.shape, names, shards)


def check_whole_bytes(path: str, shape: tuple[int, ...], names: Any, shards: int) -> None:
    """Raise if the shards of a mask along its last axis do not hold whole bytes."""
    if shape[-1] % (8 * shards):
        raise ValueError(
            f"packed=True cannot store the mask of {path!r} of shape {shape}: its last axis "
            f"is split over {shards} shards of mesh axis {names!r}, and {shape[-1]} is not a "
            f"multiple of 8 × {shards}. Pass packed=False, or split another axis."
        )
