"""The 2:4 kernel for many rows, in Pallas's interpreter with its one instruction emulated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu

from jaxprune.kernels import _hopper
from jaxprune.kernels import nm_gemm_gpu as gemm
from tests.kernels.nm_lanes import H100, groups, only_where_it_builds


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_packing_is_undone_exactly(dtype: type, rng: np.random.Generator) -> None:
    n_out, k = 70, 100  # neither a whole tile nor a whole step
    values, positions, _ = groups(rng, n_out, k, 2, 4, dtype)
    packed = gemm.pack(values, positions, m=4)
    assert packed.values.shape == (128, 64)
    assert packed.values.dtype == dtype
    back = gemm.unpack(packed, n=2, m=4, k=k, n_out=n_out)
    np.testing.assert_array_equal(back[0], values)
    np.testing.assert_array_equal(back[1], positions)


def test_stacked_layers_are_packed_under_vmap(rng: np.random.Generator) -> None:
    layers = [groups(rng, 128, 64, 2, 4, jnp.bfloat16)[:2] for _ in range(2)]
    values, positions = (jnp.stack(x) for x in zip(*layers, strict=True))
    packed = jax.vmap(lambda v, p: gemm.pack(v, p, m=4))(values, positions)
    for i, layer in enumerate(layers):
        jax.tree.map(np.testing.assert_array_equal, packed[0][i], gemm.pack(*layer, m=4)[0])
        jax.tree.map(np.testing.assert_array_equal, packed[1][i], gemm.pack(*layer, m=4)[1])


def multiply(
    rng: np.random.Generator, rows: int, k: int, n_out: int, config: gemm.Config, dtype: type
) -> tuple[np.ndarray, np.ndarray]:
    values, positions, dense = groups(rng, n_out, k, 2, 4, dtype)
    packed = gemm.pack(values, positions, m=4)
    x = jnp.asarray(rng.standard_normal((rows, k)), jnp.float32).astype(dtype)
    emulate = mosaic_gpu.InterpretGPUParams() if _hopper.missing() is None else None
    got = gemm.matmul(x, packed, n=2, m=4, n_out=n_out, config=config, emulate=emulate)
    assert got.shape == (rows, n_out)
    assert got.dtype == dtype
    return np.asarray(got, np.float32), np.asarray(x, np.float32) @ dense


@pytest.mark.parametrize(
    ("cluster", "dtype"), [(1, jnp.float16), (2, jnp.bfloat16)], ids=["alone", "pair"]
)
def test_tiles_multiply_as_dense_does(
    cluster: int, dtype: type, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hopper, "MULTIPROCESSORS", 2)  # so that a block has several tiles
    # Odd in every way: two tiles of rows that overlap, three of outputs, 5 steps in 3 stages.
    config = gemm.Config(rows=64, stages=3, cluster=cluster)
    with only_where_it_builds():
        got, want = multiply(rng, 99, 300, 330, config, dtype)
        np.testing.assert_allclose(got, want, rtol=1e-2, atol=0.1)


@pytest.mark.parametrize(
    ("tile", "splits", "k"),
    [(64, 3, 384), (64, 4, 128), (32, 1, 128), (32, 2, 256)],
    ids=["of 6 steps", "too many", "32 rows", "32 rows in parts"],
)
def test_parts_of_k_are_added(
    tile: int, splits: int, k: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hopper, "MULTIPROCESSORS", 4)  # so that a block has several parts
    config = gemm.Config(rows=tile, stages=2, cluster=2, splits=splits)
    with only_where_it_builds():
        got, want = multiply(rng, 72, k, 330, config, jnp.bfloat16)
        np.testing.assert_allclose(got, want, rtol=1e-2, atol=0.1)


def test_rows_of_another_type_are_refused(rng: np.random.Generator) -> None:
    values, positions, _ = groups(rng, 128, 64, 2, 4, jnp.bfloat16)
    packed = gemm.pack(values, positions, m=4)
    with pytest.raises(TypeError) as error:
        gemm.matmul(jnp.zeros((8, 64), jnp.float32), packed, n=2, m=4, n_out=128)
    assert str(error.value) == (
        "nm_gemm_gpu: x must have the type of the weights, bfloat16, got float32. Cast x, or pack "
        "the weights anew."
    )


def test_what_is_not_served_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hopper, "missing", lambda: None)

    def refusal(rows: int = 512, k: int = 64, n: int = 2, m: int = 4) -> str | None:
        return gemm.supports(rows, k, 128, jnp.bfloat16, n, m, device_kind=H100)

    assert refusal() is None
    assert refusal(n=1) == (
        "takes 2:4, not 1:4: the sparse tensor cores multiply 2 of every 4 weights. Use "
        "implementation='xla'."
    )
    assert refusal(rows=0) == "needs at least one row and one output, not 0 and 128."
    assert refusal(k=60) == (
        "needs k to be a multiple of 8, not 60. Pad x and the weights with zeros."
    )
    assert gemm.supports(512, 64, 128, jnp.float32, 2, 4, device_kind=H100) == (
        "takes bfloat16 or float16, not float32: the sparse tensor cores select among four weights "
        "of 16 bits only. Cast weights and activations, or use implementation='xla'."
    )
    assert gemm.supports(512, 64, 128, jnp.bfloat16, 2, 4, device_kind="NVIDIA A100") == (
        "needs an NVIDIA Hopper GPU (H100, H200), not 'NVIDIA A100': the kernel uses instructions "
        "that other GPUs lack. Use implementation='xla'."
    )


def test_splits_suit_the_rows() -> None:
    assert gemm.default(8192, 4096, 4096).rows == 256
    assert gemm.default(100, 4096, 4096).rows == 128
    assert gemm.default(65, 4096, 128).cluster == 1
    assert gemm.configs(300, 4096, 4096)[0] == gemm.default(300, 4096, 4096)
    assert {c.rows for c in gemm.configs(100, 4096, 4096)} == {128, 64, 32}


def test_k_is_split_where_multiprocessors_would_have_no_tile() -> None:
    assert gemm.default(64, 8192, 8192).splits == 2  # 32 pairs of tiles for 66 of blocks
    assert gemm.default(64, 4096, 4096).splits == 4
    assert gemm.default(64, 4096, 11008).splits == 1
    assert gemm.default(8192, 8192, 8192).splits == 1
    assert all(172 % c.splits == 0 for c in gemm.configs(64, 11008, 4096))


def test_the_instruction_itself_lowers() -> None:
    packed = gemm.Packed(
        jax.ShapeDtypeStruct((128, 128), jnp.bfloat16), jax.ShapeDtypeStruct((2, 512), jnp.int32)
    )
    run = jax.jit(lambda x, w: gemm.matmul(x, w, n=2, m=4, n_out=128))
    with only_where_it_builds():
        traced = run.trace(jax.ShapeDtypeStruct((64, 256), jnp.bfloat16), packed)
        assert "@mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()
