"""Leaves of a state as they lie on disk, and back into the form that a template asks for.

On disk every leaf is a plain array under its path: masks as bits, whether the state holds them as
booleans or packed; typed keys as their data; numbers as arrays without axes.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, NamedSharding, Sharding

from jaxprune._core import paths
from jaxprune._core.packing import PackedMask, is_packed
from jaxprune.types import Tree

_NUMBERS = {"int": np.int64, "float": np.float64}


class Spec(NamedTuple):
    """What a leaf is, in a state and in a manifest alike."""

    shape: tuple[int, ...]
    dtype: str  # a numpy name; "key<...>"; "int" and "float" for Python's numbers

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"

    @property
    def is_mask(self) -> bool:
        """Whether the leaf is stored as bits along its last axis."""
        return self.dtype == "bool" and len(self.shape) > 0

    @property
    def is_key(self) -> bool:
        """Whether the leaf is an array of typed keys."""
        return self.dtype.startswith("key<")

    def fits(self, other: "Spec") -> bool:
        """Whether a leaf of one kind can be restored as the other.

        A counter is a Python number before the first jitted step and an array after it.
        """
        return self == other or (
            self.shape == other.shape == ()
            and bool({self.dtype, other.dtype} & set(_NUMBERS))
            and _family(self.dtype) == _family(other.dtype)
        )


def _family(dtype: str) -> str:
    if dtype.startswith("key<"):
        return dtype
    kinds = (jnp.integer, jnp.floating)
    kind = jnp.dtype(_NUMBERS.get(dtype, dtype))
    return next((k.__name__ for k in kinds if jnp.issubdtype(kind, k)), dtype)


def named_leaves(tree: Tree) -> dict[str, Any]:
    """Return ``{path: leaf}`` where a packed mask is one leaf."""
    return paths.flatten(tree, is_packed)


def rebuild(template: Tree, leaves: Mapping[str, Any]) -> Tree:
    """Return ``template`` with the leaf at each path replaced."""
    return jax.tree_util.tree_map_with_path(
        lambda key_path, _: leaves[paths.path_of(key_path)], template, is_leaf=is_packed
    )


def spec_of(path: str, leaf: Any) -> Spec:
    """Describe a leaf: an array, a ``jax.ShapeDtypeStruct``, a packed mask, or a number."""
    if is_packed(leaf):
        return Spec((*leaf.bits.shape[:-1], leaf.size), "bool")
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return Spec(tuple(leaf.shape), str(leaf.dtype))
    if isinstance(leaf, bool | int | float):
        return Spec((), type(leaf).__name__)
    raise TypeError(
        f"a checkpoint holds arrays and numbers, but {path!r} is of type {type(leaf).__name__}. "
        "Leave it out: split the arrays off, as with eqx.filter(model, eqx.is_array) or "
        "nnx.state(model)."
    )


def to_disk(spec: Spec, leaf: Any) -> Any:
    """Return the array that is stored for a leaf.

    What is spread over processes stays so. What a process has for itself is taken from the first.
    """
    if is_packed(leaf):
        return _global(leaf.bits)
    if spec.is_mask:
        if _has_whole_bytes(spec, getattr(leaf, "sharding", None)):
            return _packed(leaf)
        return np.packbits(_on_host(leaf), axis=-1, bitorder="little")
    if spec.is_key:
        return _on_host(jax.random.key_data(leaf))
    if isinstance(leaf, jax.Array):
        return _global(leaf)
    return np.asarray(leaf, _NUMBERS.get(spec.dtype))


def from_disk(stored: Any, spec: Spec, template: Any) -> Any:
    """Return a leaf with the form, the dtype and the sharding of ``template``."""
    if is_packed(template):
        return PackedMask(_placed(stored, template.bits), template.size)
    if spec.is_mask:
        if isinstance(stored, jax.Array):
            return _unpacked(stored, spec.shape[-1], sharding_of("", template))
        stored = np.unpackbits(stored, axis=-1, count=spec.shape[-1], bitorder="little")
        return _like(stored.astype(np.bool_), template)
    if spec.is_key:
        return _keys(stored, template)
    return _like(stored, template)


def disk_shape(spec: Spec, template: Any) -> tuple[int, ...]:
    """Return the shape of the stored array."""
    if spec.is_mask:
        return (*spec.shape[:-1], -(-spec.shape[-1] // 8))
    return jax.eval_shape(jax.random.key_data, template).shape if spec.is_key else spec.shape


def sharding_on_disk(path: str, spec: Spec, template: Any) -> Sharding | None:
    """Return where a stored array is read to: a sharding, or None for every process's host."""
    sharding = sharding_of(path, template)
    spread = sharding is not None and not sharding.is_fully_addressable
    if spec.is_key or (jax.process_count() > 1 and not spread):
        return None
    if spec.is_mask and not is_packed(template):
        return sharding if _has_whole_bytes(spec, sharding) else None
    return sharding


def sharding_of(path: str, template: Any) -> Sharding | None:
    """Return where a leaf goes: a sharding, or None for the default device, uncommitted.

    Arrays that are not committed stay so: committed to one device, a step counter could not be
    used together with parameters on eight.
    """
    array = template.bits if is_packed(template) else template
    if isinstance(array, jax.Array) and not array.committed:
        return None
    sharding = getattr(array, "sharding", None)
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        return _concrete(path, sharding)
    return sharding


def _concrete(path: str, sharding: NamedSharding) -> Sharding:
    """Place an abstract sharding, as ``jax.eval_shape`` gives, on the mesh that is set."""
    mesh = jax.sharding.get_mesh()
    if mesh.shape != sharding.mesh.shape:
        raise ValueError(
            f"template has {path!r} sharded over the abstract mesh {dict(sharding.mesh.shape)}, "
            f"and the mesh that is set is {dict(mesh.shape)}. Call restore inside "
            "jax.set_mesh(mesh), or give arrays as the template."
        )
    return NamedSharding(mesh, sharding.spec)


def _like(stored: Any, template: Any) -> Any:
    if isinstance(template, bool | int | float):
        return type(template)(stored.item())
    if isinstance(template, np.ndarray | np.generic):
        value = np.asarray(stored, template.dtype)
        return value if isinstance(template, np.ndarray) else value[()]
    return _placed(stored, template)


def _placed(stored: Any, template: Any) -> jax.Array:
    sharding = sharding_of("", template)
    if isinstance(stored, jax.Array):
        return stored
    value = np.asarray(stored, template.dtype)
    if sharding is not None:
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
    if template.weak_type and value.shape == ():
        weak = jnp.asarray(value.item())
        return weak if weak.dtype == value.dtype else jnp.array(value)
    return jnp.array(value)


def _keys(data: np.ndarray, template: Any) -> jax.Array:
    sharding, impl = sharding_of("", template), _key_impl(template)
    wrap = functools.partial(jax.random.wrap_key_data, impl=impl)
    return (
        wrap(jnp.array(data)) if sharding is None else jax.jit(wrap, out_shardings=sharding)(data)
    )


def _key_impl(keys: Any) -> str:
    names: list[str] = []
    jax.eval_shape(lambda traced: names.append(str(jax.random.key_impl(traced))), keys)
    return names[0]


def _global(array: jax.Array) -> Any:
    """Return an array as orbax takes it: of all processes, or on the host."""
    alone = jax.process_count() == 1 or not array.is_fully_addressable
    return array if alone else np.asarray(array)


def _has_whole_bytes(spec: Spec, sharding: Sharding | None) -> bool:
    """Tell whether a mask is spread over processes, and its shards can be packed where they are."""
    if sharding is None or sharding.is_fully_addressable:
        return False
    length = sharding.shard_shape(spec.shape)[-1]
    return length == spec.shape[-1] or length % 8 == 0


@jax.jit
def _packed(mask: jax.Array) -> jax.Array:
    return jnp.packbits(mask, axis=-1, bitorder="little")


def _unpacked(bits: jax.Array, count: int, sharding: Sharding | None) -> jax.Array:
    @functools.partial(jax.jit, out_shardings=sharding)
    def unpack(bits: jax.Array) -> jax.Array:
        mask = jnp.unpackbits(bits, axis=-1, count=count, bitorder="little")
        return mask.astype(jnp.bool_)

    return unpack(bits)


def _on_host(array: Any) -> np.ndarray:
    spread = isinstance(array, jax.Array) and not array.is_fully_addressable
    if spread and not array.is_fully_replicated:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)
