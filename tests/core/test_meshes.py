"""What is known of the mesh axes that split an array inside shard_map."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxprune._core import meshes

checks = pytest.mark.parametrize("check_vma", [True, False])


def seen(function: Callable[[jax.Array], Any], *, check_vma: bool, spec: P) -> Any:
    """Return what a function of a shard returns, while shard_map is traced."""
    found = []

    def look(x: jax.Array) -> jax.Array:
        found.append(function(x))
        return x

    mesh = jax.make_mesh((4, 2), ("data", "model"))
    x = jax.device_put(np.ones((8, 8), np.float32), jax.sharding.NamedSharding(mesh, spec))
    call = jax.shard_map(look, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)
    jax.eval_shape(call, x)
    return found[0]


@pytest.mark.parametrize(
    ("spec", "names", "shards"),
    [
        (P("data", "model"), ("data", "model"), 8),
        (P(("model", "data")), ("data", "model"), 8),
        (P(None, "model"), ("model",), 2),
    ],
    ids=str,
)
def test_the_axes_are_read_from_the_type_in_the_order_of_the_mesh(
    spec: P, names: tuple[str, ...], shards: int
):
    assert seen(lambda x: meshes.mesh_axes(x, None), check_vma=True, spec=spec) == names
    assert seen(meshes.known_axes, check_vma=True, spec=spec) == names
    assert seen(meshes.shards_of, check_vma=True, spec=spec) == shards


def test_nothing_is_known_of_an_unchecked_shard():
    assert seen(meshes.known_axes, check_vma=False, spec=P("data")) == ()


@checks
def test_axes_that_are_given_win_over_the_block_and_the_block_over_the_type(check_vma: bool):
    def look(x: jax.Array) -> list[Any]:
        with meshes.split_over(("data",)):
            inside = [meshes.mesh_axes(x, None), meshes.mesh_axes(x, "model"), meshes.known_axes(x)]
            with meshes.split_over(()):
                inside.append(meshes.shards_of(x))
            return [*inside, meshes.shards_of(x)]

    found = seen(look, check_vma=check_vma, spec=P("data", "model"))
    assert found == [("data",), ("model",), ("data",), 1, 4]


def test_the_block_says_nothing_of_single_axes():
    def look(x: jax.Array) -> None:
        with meshes.split_over(("data",)), pytest.raises(ValueError, match="cannot read which"):
            meshes.mesh_axes_along((0,), x, None)

    seen(look, check_vma=True, spec=P("data", "model"))


def test_the_block_ends_with_an_error():
    with pytest.raises(RuntimeError, match="inside"), meshes.split_over(()):
        raise RuntimeError("inside")
    assert meshes.known_axes(jnp.ones(3)) == ()


def test_outside_shard_map_an_array_is_whole():
    x = jnp.ones((2, 3))
    assert meshes.mesh_axes(x, None) == meshes.mesh_axes_along((0,), x, None) == ()
    assert meshes.shards_of(x) == 1


def test_an_axis_of_vmap_may_be_named():
    def shards(x: jax.Array) -> jax.Array:
        return jnp.int32(meshes.shards(meshes.mesh_axes(x, "batch")))

    assert jax.vmap(shards, axis_name="batch")(jnp.ones((3, 2))).tolist() == [3, 3, 3]
