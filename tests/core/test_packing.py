"""One bit a weight, and the same mask back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import hlo
from jaxprune._core import paths
from jaxprune._core.packing import PackedMask, check_packable, is_packed, pack, unpack
from tests import quick


def draw(shape: tuple[int, ...]) -> jax.Array:
    return jax.random.bernoulli(jax.random.key(0), 0.5, shape)


@pytest.mark.parametrize("shape", [(1,), (8,), (13,), (3, 16), (2, 3, 9), (4, 0)], ids=str)
def test_a_mask_comes_back(shape: tuple[int, ...]):
    mask = draw(shape)
    packed = pack(mask)
    assert packed.bits.shape == (*shape[:-1], -(-shape[-1] // 8))
    assert packed.bits.dtype == jnp.uint8
    back = jax.jit(unpack)(packed)
    assert back.dtype == jnp.bool_
    np.testing.assert_array_equal(back, mask)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_bit_i_of_a_byte_is_entry_i_of_its_eight(flags: list[bool]):
    packed = pack(np.array(flags))
    number = int.from_bytes(np.asarray(packed.bits).tobytes(), "little")
    assert [bool(number >> i & 1) for i in range(len(flags))] == flags
    assert packed.size == len(flags)


def test_a_boolean_array_passes_through():
    mask = draw((3, 4))
    assert unpack(mask) is mask


def test_it_is_a_tree_with_one_leaf_and_a_static_size():
    packed = pack(draw((3, 11)))
    assert paths.flatten({"kernel": packed}) == {"kernel/bits": packed.bits}
    assert is_packed(packed)
    assert not is_packed(packed.bits)
    shapes = jax.eval_shape(lambda x: x, packed)
    assert isinstance(shapes, PackedMask)
    assert (shapes.bits.shape, shapes.size) == ((3, 2), 11)
    assert repr(shapes).endswith("size=11)")
    assert jax.tree.structure(packed) != jax.tree.structure(pack(draw((3, 12))))


def test_layers_in_front_can_be_mapped_and_scanned_over():
    masks = draw((4, 3, 11))
    packed = jax.vmap(pack)(masks)
    np.testing.assert_array_equal(unpack(packed), masks)
    np.testing.assert_array_equal(jax.lax.map(unpack, packed), masks)


@pytest.mark.parametrize("spec", [P("data"), P("data", "model"), P(None, "model")], ids=str)
def test_packing_moves_nothing_between_devices(mesh: Mesh, spec: P):
    mask = jax.device_put(draw((16, 32)), NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        check_packable("kernel", mask)
        packing = quick.jit(pack).lower(mask).compile()
        packed = packing(mask)
        unpacking = quick.jit(unpack).lower(packed).compile()
        back = unpacking(packed)
    assert not hlo.collectives(packing) + hlo.collectives(unpacking)
    assert packed.bits.sharding.is_equivalent_to(mask.sharding, 2)
    assert back.sharding.is_equivalent_to(mask.sharding, 2)
    np.testing.assert_array_equal(back, mask)


def error_of(mask: jax.Array) -> str:
    with pytest.raises(ValueError) as raised:
        check_packable("encoder/kernel", mask)
    return str(raised.value)


CUT = (
    "packed=True cannot store the mask of 'encoder/kernel' of shape (16, 8): its last axis is "
    "split over 2 shards of mesh axis 'model', and 8 is not a multiple of 8 × 2. Pass "
    "packed=False, or split another axis."
)


def test_shards_that_cut_a_byte_are_refused(mesh: Mesh):
    assert error_of(jax.device_put(draw((16, 8)), NamedSharding(mesh, P("data", "model")))) == CUT


def test_explicit_shards_that_cut_a_byte_are_refused_inside_jit():
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    x = jax.ShapeDtypeStruct((16, 8), jnp.bool_, sharding=NamedSharding(mesh, P("data", "model")))
    found = []
    with jax.set_mesh(mesh):
        jax.eval_shape(lambda x: (found.append(error_of(x)), x)[1], x)
    assert found == [CUT]


def test_several_mesh_axes_count_together():
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    mask = jax.device_put(draw((2, 32)), NamedSharding(mesh, P(None, ("data", "model"))))
    assert "split over 8 shards of mesh axis ('data', 'model'), and 32 is not" in error_of(mask)


def test_a_scalar_is_refused():
    assert error_of(jnp.array(True)) == (
        "packed=True cannot store the mask of 'encoder/kernel': a scalar has no axis to pack. "
        "Pass packed=False, or exclude it with where=."
    )
