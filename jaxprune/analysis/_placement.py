"""How arrays are split over a mesh: from shardings or specs, on shapes alone."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxprune._core import paths
from jaxprune._core.packing import check_whole_bytes
from jaxprune.masks import MaskRule
from jaxprune.patterns import NM, Block
from jaxprune.types import Tree

AnyMesh: TypeAlias = Mesh | AbstractMesh
Specs: TypeAlias = Callable[[str], PartitionSpec | None] | Tree
"""``path -> PartitionSpec``, or a tree of them; None for a parameter that is on every device."""

_Names: TypeAlias = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Placement:
    """How each parameter is split.

    Attributes:
      mesh: length of each mesh axis; empty without a mesh.
      names: for each axis of each parameter, the mesh axes that split it.
    """

    mesh: Mapping[str, int]
    names: Mapping[str, tuple[_Names, ...]]

    @property
    def devices(self) -> int:
        """The number of devices."""
        return math.prod(self.mesh.values())

    def shards(self, path: str, axis: int | None = None) -> int:
        """Return into how many parts a parameter is split, along one axis or in all."""
        found = self.names[path]
        chosen = found if axis is None else (found[axis],)
        return math.prod(self.mesh[name] for names in chosen for name in names)

    def text(self, path: str) -> str:
        """Return the mesh axes of a parameter's axes, for a table."""
        return " × ".join("+".join(names) or "·" for names in self.names[path])


def placement_of(leaves: Mapping[str, Any], mesh: AnyMesh | None, specs: Specs | None) -> Placement:
    """Read how parameters are split, and raise if a mesh does not divide one."""
    found = dict(_shardings(leaves) if specs is None else _given(leaves, specs))
    meshes = [sharding.mesh for sharding in found.values() if isinstance(sharding, NamedSharding)]
    lengths = _one_mesh([mesh, *meshes] if mesh is not None else meshes)
    names: dict[str, tuple[_Names, ...]] = {}
    for path, leaf in leaves.items():
        place = found[path]
        spec = place.spec if isinstance(place, NamedSharding) else place
        if spec is not None and any(spec) and not lengths:
            raise ValueError(
                f"specs splits {path!r} by {spec}, and there is no mesh. Pass mesh=, a "
                "jax.sharding.AbstractMesh((8, 4), ('data', 'model')) if there are no devices."
            )
        names[path] = tuple(_axes(path, leaf.shape, spec, lengths))
    placement = Placement(lengths, names)
    for path, leaf in leaves.items():
        _check_divides(path, leaf.shape, placement)
    return placement


def check_pattern(path: str, shape: tuple[int, ...], rule: MaskRule, placement: Placement) -> None:
    """Raise if a shard cuts a group of N:M or a block."""
    layer, pattern = rule.layer_axis(path, shape), rule.pattern_of(path)
    own = [axis for axis in range(len(shape)) if axis != layer]  # those that the pattern counts
    for place, whole in _whole(pattern, tuple(shape[axis] for axis in own)):
        axis = own[place]
        shards = placement.shards(path, axis)
        if shards > 1 and shape[axis] // shards % whole:
            raise ValueError(
                f"{pattern!r} needs {whole} neighbours of axis {axis} of {path!r} of shape {shape} "
                f"on one device, and mesh axis {_named(placement.names[path][axis])} cuts it into "
                f"{shards} shards of {shape[axis] // shards}: every change of masks would gather "
                "the axis. Split another axis, or make its shards a multiple of "
                f"{whole} long."
            )


def check_packed(path: str, shape: tuple[int, ...], placement: Placement) -> None:
    """Raise if the shards of a packed mask do not hold whole bytes."""
    shards = placement.shards(path, len(shape) - 1)
    if shards > 1:
        names = placement.names[path][-1]
        check_whole_bytes(path, shape, names[0] if len(names) == 1 else names, shards)


def _shardings(leaves: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for path, leaf in leaves.items():
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding | SingleDeviceSharding | None):
            raise TypeError(
                f"{path!r} has a sharding of type {type(sharding).__name__}. Place it with a "
                "jax.sharding.NamedSharding, or pass mesh= and specs=."
            )
        yield path, sharding if isinstance(sharding, NamedSharding) else None


def _given(leaves: Mapping[str, Any], specs: Specs) -> Iterator[tuple[str, Any]]:
    if callable(specs) and not _is_tree(specs):
        for path in leaves:
            yield path, _checked(path, specs(path))
        return
    flat, _ = jax.tree_util.tree_flatten_with_path(specs, is_leaf=_is_spec)
    named = {paths.path_of(key_path): spec for key_path, spec in flat}
    missing = [path for path in leaves if path not in named]
    unknown = [path for path in named if path not in leaves]
    if missing or unknown:
        raise ValueError(
            f"specs does not match the parameters: no entry for {paths.listed(missing) or 'none'}; "
            f"entries without a parameter: {paths.listed(unknown) or 'none'}. Give a tree with "
            "the parameters' structure, or a function of the path."
        )
    for path in leaves:
        yield path, _checked(path, named[path])


def _is_tree(specs: Any) -> bool:
    """Tell a tree from a function: a module that holds specs can be called, too."""
    return any(isinstance(x, PartitionSpec) for x in jax.tree.leaves(specs, is_leaf=_is_spec))


def _is_spec(node: Any) -> bool:
    return node is None or isinstance(node, PartitionSpec | NamedSharding)


def _checked(path: str, spec: Any) -> Any:
    if not _is_spec(spec):
        raise TypeError(
            f"specs gives {spec!r} of type {type(spec).__name__} for {path!r}. Give a "
            "jax.sharding.PartitionSpec, or None to hold it on every device."
        )
    return spec


def _one_mesh(meshes: list[Any]) -> dict[str, int]:
    lengths = [dict(mesh.shape) for mesh in meshes]
    different = [other for other in lengths if other != lengths[0]]
    if different:
        raise ValueError(
            f"the parameters and mesh= are on different meshes: {lengths[0]} and {different[0]}. "
            "Place all parameters on one mesh."
        )
    return lengths[0] if lengths else {}


def _axes(
    path: str, shape: tuple[int, ...], spec: PartitionSpec | None, mesh: Mapping[str, int]
) -> Iterator[_Names]:
    parts = () if spec is None else tuple(spec)
    if len(parts) > len(shape):
        raise ValueError(
            f"{spec} has {len(parts)} parts, and {path!r} of shape {shape} has {len(shape)} axes. "
            "Give one part for each axis, or fewer."
        )
    for part in (*parts, *[None] * (len(shape) - len(parts))):
        names = () if part is None else part if isinstance(part, tuple) else (part,)
        unknown = [name for name in names if name not in mesh]
        if unknown:
            raise ValueError(
                f"{spec} of {path!r} names {unknown[0]!r}, which is no axis of the mesh "
                f"{dict(mesh)}. Correct the spec, or pass the mesh that has it."
            )
        yield tuple(names)


def _check_divides(path: str, shape: tuple[int, ...], placement: Placement) -> None:
    for axis, names in enumerate(placement.names[path]):
        shards = placement.shards(path, axis)
        if shape[axis] % shards:
            raise ValueError(
                f"axis {axis} of {path!r} of shape {shape} is split over {shards} shards of mesh "
                f"axis {_named(names)}, and {shape[axis]} is not a multiple of {shards}. Split "
                "another axis, or pad the parameter."
            )


def _named(names: _Names) -> str:
    return repr(names[0] if len(names) == 1 else names)


def _whole(pattern: Any, shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Return the axes of one layer's weight and how many neighbours must lie together."""
    if isinstance(pattern, Block):
        first = len(shape) - len(pattern.shape)
        yield from ((first + i, size) for i, size in enumerate(pattern.shape))
    if isinstance(pattern, NM):
        axes = tuple(axis % len(shape) for axis in pattern.axes)
        if shape[axes[-1]] % pattern.m == 0 or len(axes) == 1:
            yield axes[-1], pattern.m
            return
        # Groups run over several axes, of which only the first may be split.
        inner = math.prod(shape[axis] for axis in axes[1:])
        yield axes[0], pattern.m // math.gcd(pattern.m, inner)
        yield from ((axis, shape[axis]) for axis in axes[1:])
