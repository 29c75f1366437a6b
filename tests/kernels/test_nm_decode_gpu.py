"""The decode kernel's packing and lane plan, with its instructions emulated in numpy."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.kernels import _hopper
from jaxprune.kernels import nm_decode_gpu as decode
from jaxprune.kernels import nm_decode_gpu_layout as layout
from jaxprune.kernels.nm_decode_gpu_launch import Launch
from tests.kernels import nm_lanes, nm_ring
from tests.kernels.nm_lanes import H100, groups, only_where_it_builds


@pytest.mark.parametrize(("n", "m"), decode.PATTERNS)
def test_lanes_multiply_as_dense_does(n: int, m: int, rng: np.random.Generator) -> None:
    p = layout.plan(n, m)
    k, n_out, rows = p.chunk + 16, 19, 11  # a whole tile and chunk, and a part of each
    dtype = jnp.float16 if m == 8 else jnp.bfloat16
    values, positions, dense = groups(rng, n_out, k, n, m, dtype)
    packed = jax.jit(decode.pack, static_argnames="m")(values, positions, m=m)
    x = np.asarray(jnp.asarray(rng.standard_normal((rows, k)), jnp.float32).astype(dtype))
    x = np.pad(x.astype(np.float32), ((0, 0), (0, p.chunk - 16)))
    got = nm_lanes.multiply(x, packed, n, m)
    np.testing.assert_allclose(got[:, :n_out], x[:, :k] @ dense, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got[:, n_out:], 0)
    unpack = jax.jit(decode.unpack, static_argnames=("n", "m", "k", "n_out"))
    back = unpack(packed, n=n, m=m, k=k, n_out=n_out)
    np.testing.assert_array_equal(back[0], values)
    np.testing.assert_array_equal(back[1], positions)


@pytest.mark.parametrize(
    ("n", "m", "ratio"),
    [(2, 4, 16 / 9), (1, 4, 32 / 9), (2, 8, 64 / 19), (1, 8, 128 / 19), (1, 16, 12.8)],
)
def test_no_byte_is_stored_in_vain(n: int, m: int, ratio: float) -> None:
    p = layout.plan(n, m)
    stored = 512 * p.loads + 4 * p.meta_words
    assert layout.TILE * p.chunk * 2 / stored == pytest.approx(ratio)


def splits() -> list[tuple[int, int, int, layout.Plan, decode.Config]]:
    """Return rows, chunks, tiles, plan and split of many products."""
    return [
        (rows, -(-k // p.chunk), -(-n_out // 16), p, config)
        for n, m in decode.PATTERNS
        for p in [layout.plan(n, m)]
        for rows in (1, 8, 9, 16, 32, 33, 64)
        for k, n_out in ((4096, 4096), (128, 24), (14336, 4096), (11008, 1000), (4096, 152_064))
        for config in decode.configs(rows, k, n_out, n, m)
    ]


def test_every_split_fits_a_block_and_its_panels_the_rounds() -> None:
    for rows, chunks, _, p, config in splits():
        assert decode.fits(rows, p, config), (rows, p, config)
        assert config.tiles % config.per_warp == 0
        assert config.depth % config.panel == 0
        rounds = _hopper.ceil_div(_hopper.ceil_div(chunks, config.cluster), config.slices)
        panels = _hopper.ceil_div(rounds, config.panel)
        assert 1 <= config.stages <= panels
        assert config.stages >= 2 or panels == 1, "a ring of one stage waits for every copy"


def ring(rows: int, chunks: int, config: decode.Config, n: int = 2, m: int = 4) -> Launch:
    p = layout.plan(n, m)
    tiles = 2 * config.tiles
    return Launch(p, config, rows, chunks * p.chunk, tiles * 16, tiles, chunks, "bf16")


RINGS = {
    "all held": ring(1, 17, decode.Config(1, 1, 1, 4, 2, 2, 3)),
    "one stage": ring(3, 9, decode.Config(1, 2, 1, 2, 1, 1, 1)),
    "two stages": ring(9, 23, decode.Config(2, 4, 2, 2, 2, 1, 2)),
    "three stages": ring(33, 37, decode.Config(2, 2, 2, 3, 2, 1, 3)),
    "many rows": ring(64, 21, decode.Config(1, 2, 1, 2, 3, 3, 2)),
    "planes": ring(2, 15, decode.Config(2, 1, 1, 3, 2, 1, 2), 2, 8),
}


@pytest.mark.parametrize("it", RINGS.values(), ids=RINGS)
def test_no_warp_waits_for_ever_nor_reads_another_panel(it: Launch) -> None:
    for rank in range(it.config.cluster):
        nm_ring.simulate(it, rank, random.Random(rank))


@pytest.mark.slow  # the defaults of 880 products: a minute
def test_no_default_waits_for_ever() -> None:
    for n, m in decode.PATTERNS:
        p = layout.plan(n, m)
        for rows in (1, 3, 8, 13, 16, 17, 24, 32, 49, 64):
            for k, n_out in ((4096, 4096), (8192, 8192), (11008, 4096), (2112, 33), (14336, 4096)):
                config, chunks = decode.default(rows, k, n_out, n, m), -(-k // p.chunk)
                for rank in range(config.cluster):
                    it = ring(rows, chunks, config, n, m)
                    nm_ring.simulate(it, rank, random.Random(rank))


def test_the_simulation_sees_a_stage_that_is_filled_too_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it = RINGS["two stages"]
    monkeypatch.setattr(nm_ring.Block, "wait", _wait_for_copies_only(it))
    with pytest.raises(AssertionError):
        for seed in range(5):
            nm_ring.simulate(it, 0, random.Random(seed))


def _wait_for_copies_only(it: Launch) -> object:
    """Return a wait that does not wait for the warps that still read a stage."""
    wait, first_empty = nm_ring.Block.wait, it.config.stages * (it.stage_bytes + 8)

    def careless(block: nm_ring.Block, barrier: nm_ring.Word, parity: nm_ring.Word) -> None:
        if barrier.value[0] < first_empty:
            wait(block, barrier, parity)

    return careless


def test_the_default_fills_the_machine_once() -> None:
    config = decode.default(1, 8192, 8192, 2, 4)
    groups_ = -(-(8192 // 16) // config.tiles)
    assert config.cluster * groups_ == 128
    assert config.tiles // config.per_warp * config.slices == 16
    assert decode.default(64, 8192, 8192, 2, 4).per_warp == 2


def test_rows_of_another_type_are_refused(rng: np.random.Generator) -> None:
    values, positions, _ = groups(rng, 16, 128, 2, 4, jnp.bfloat16)
    packed = decode.pack(values, positions, m=4)
    with pytest.raises(TypeError) as error:
        decode.matmul(jnp.zeros((1, 128), jnp.float16), packed, n=2, m=4, n_out=16)
    assert str(error.value) == (
        "nm_decode_gpu: x must have the type of the weights, bfloat16, got float16. Cast x, or "
        "pack the weights anew."
    )


def test_what_is_not_served_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hopper, "missing", lambda: None)

    def refusal(rows: int = 1, k: int = 64, n: int = 2, m: int = 4) -> str | None:
        return decode.supports(rows, k, 24, jnp.bfloat16, n, m, device_kind=H100)

    assert refusal() is None
    assert refusal(n=3) == (
        "takes the patterns 2:4, 1:4, 2:8, 1:8, 1:16, 4:8, 2:16, 4:16, not 3:4. Use "
        "implementation='xla'."
    )
    assert refusal(rows=65) == "takes 1 to 64 rows, not 65. Use implementation='xla'."
    assert refusal(k=20) == (
        "needs k to be a multiple of 8, not 20. Pad x and the weights with zeros."
    )
    assert refusal(k=24, m=16) == (
        "needs k to be a multiple of 16, not 24. Pad x and the weights with zeros."
    )
    assert "bfloat16 or float16, not float32" in str(
        decode.supports(1, 64, 24, jnp.float32, 2, 4, device_kind=H100)
    )


def test_a_jax_without_the_interface_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax.experimental.pallas import mosaic_gpu

    def kernel(body: object, out_shape: object) -> None: ...

    monkeypatch.setattr(mosaic_gpu, "kernel", kernel)
    monkeypatch.setattr(jax, "__version__", "0.10.0")
    assert _hopper.missing.__wrapped__() == (
        "needs jax 0.11 or newer, not 0.10.0: its Pallas builds kernels by another interface. "
        "Update jax, or use implementation='xla'."
    )


@pytest.mark.parametrize(
    ("n", "m", "rows", "k"), [(2, 4, 33, 11008), (2, 8, 1, 1024)], ids=["guarded", "planes"]
)
def test_the_kernel_lowers_once_for_equal_layers(n: int, m: int, rows: int, k: int) -> None:
    p = layout.plan(n, m)
    tiles, chunks = -(-k // 16), -(-k // p.chunk)
    layer = decode.Packed(
        jax.ShapeDtypeStruct((tiles, chunks, 256 * p.loads), jnp.bfloat16),
        jax.ShapeDtypeStruct((tiles, chunks, p.meta_words), jnp.int32),
    )

    def twice(x: jax.Array, layers: list[decode.Packed]) -> jax.Array:
        for each in layers:
            x = decode.matmul(x, each, n=n, m=m, n_out=k)
        return x

    x = jax.ShapeDtypeStruct((rows, k), jnp.bfloat16)
    with only_where_it_builds():
        traced = jax.jit(twice).trace(x, [layer, layer])
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("@mosaic_gpu") == 1
