"""The reader of compiled programs finds what is there."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import hlo

SCALAR = "%all-reduce.1 = s32[] all-reduce(%x), channel_id=1, replica_groups=[1,8]<=[8]"
LAYOUT = "  ROOT %ag = bf16[8,128]{1,0:T(8,128)(2,1)} all-gather(%x), dimensions={0}"
TUPLE = (
    "  %ar = (s32[]{:T(128)}, /*index=1*/pred[3]{0}, f8e4m3fn[2,2]{1,0}) "
    "all-reduce(%a, %b, %c), to_apply=%add"
)
MANY = (
    "  %ar = (s32[], s32[], s32[], s32[], s32[], /*index=5*/f32[7]{0}) "
    "all-reduce(%a, %b, %c, %d, %e, %f), to_apply=%add"
)
START = (
    "  %s = ((f32[4]{0}), f32[32]{0}) all-gather-start(f32[4]{0} %x), dimensions={0}\n"
    "  %d = f32[32]{0} all-gather-done(((f32[4]{0}), f32[32]{0}) %s)"
)
PERMUTE = (
    "  %s = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x)\n"
    "  %d = f32[4]{0} collective-permute-done(%s)"
)
CALL = '  %t = (f32[2]{0}, s32[2]{0}) custom-call(%x), custom_call_target="TopK"'


@pytest.mark.parametrize(
    ("text", "kind", "shapes", "size"),
    [
        (SCALAR, "all-reduce", (("s32", ()),), 4),
        (LAYOUT, "all-gather", (("bf16", (8, 128)),), 2048),
        (TUPLE, "all-reduce", (("s32", ()), ("pred", (3,)), ("f8e4m3fn", (2, 2))), 11),
        (MANY, "all-reduce", (("s32", ()),) * 5 + (("f32", (7,)),), 48),
        (START, "all-gather", (("f32", (4,)), ("f32", (32,))), 144),
        (PERMUTE, "collective-permute", (("f32", (4,)),) * 2 + (("u32", ()),) * 2, 40),
        (CALL, "custom-call:TopK", (("f32", (2,)), ("s32", (2,))), 16),
    ],
)
def test_an_operation_is_read(text: str, kind: str, shapes: tuple[hlo.Shape, ...], size: int):
    assert hlo.operations(text) == [(kind, shapes, size)]
    assert hlo.collectives(text) == ([(kind, shapes, size)] if kind in hlo.COLLECTIVES else [])


@pytest.mark.parametrize(
    "line",
    [
        "HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}",
        "%add (a: s32[], b: s32[]) -> s32[] {",
        "}",
        "",
    ],
)
def test_a_line_without_an_operation_is_passed_over(line: str):
    assert hlo.operations(line) == []


def test_a_sort_is_found():
    assert "sort" in hlo.kinds(jax.jit(jnp.sort).lower(jnp.arange(8.0)).compile())


def test_a_gather_and_its_size_are_found(mesh: Mesh):
    x = jax.device_put(jnp.arange(64.0), NamedSharding(mesh, PartitionSpec("data")))
    gather = jax.jit(lambda x: x + 1, out_shardings=NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        found = hlo.collectives(gather.lower(x).compile())
    assert found == [("all-gather", (("f32", (64,)),), 256)]


def test_a_collective_inside_a_loop_is_found(mesh: Mesh):
    x = jax.device_put(jnp.arange(64), NamedSharding(mesh, PartitionSpec("data")))
    loop = jax.jit(lambda x: lax.fori_loop(0, 3, lambda i, total: total + jnp.sum(x + i), 0))
    with jax.set_mesh(mesh):
        found = hlo.collectives(loop.lower(x).compile())
    assert {operation.kind for operation in found} == {"all-reduce"}
    assert {operation.bytes for operation in found} == {4}
