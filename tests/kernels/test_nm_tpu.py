"""N:M products for TPUs, interpreted; `test_tpu_aot` compiles them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.kernels import nm_tpu
from jaxprune.kernels.nm_tpu_layout import code, tile

V6E = "TPU v6 lite"
PATTERNS = [(2, 4), (1, 4), (2, 8), (1, 16), (3, 5), (1, 2)]


def weight(
    rng: np.random.Generator, n: int, m: int, k: int, n_out: int, dtype: Any
) -> tuple[jax.Array, jax.Array, np.ndarray]:
    """Return values, positions, and the dense weight (k, n_out)."""
    shape = (n_out, k // m, m)
    places = np.sort(np.argsort(rng.random(shape), axis=-1)[..., :n], axis=-1)
    values = jnp.asarray(rng.integers(-9, 10, (*shape[:2], n)), dtype)
    dense = np.zeros(shape)
    np.put_along_axis(dense, places, np.asarray(values, np.float64), axis=-1)
    return values, jnp.asarray(places, jnp.uint8), dense.reshape(n_out, k).T


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_packing_is_undone(n: int, m: int, rng: np.random.Generator):
    k, n_out = 130 * m, 19  # part of a tile
    values, positions, _ = weight(rng, n, m, k, n_out, jnp.bfloat16)
    packed = jax.jit(nm_tpu.pack, static_argnames="m")(values, positions, m=m)
    assert packed.values.shape == (n, tile(130, n, m) * -(-130 // tile(130, n, m)), 128)
    assert packed.words.shape == (packed.values.shape[1] // code(n, m).per_word, 128)
    undo = jax.jit(nm_tpu.unpack, static_argnames=("n", "m", "k", "n_out"))
    back = undo(packed, n=n, m=m, k=k, n_out=n_out)
    np.testing.assert_array_equal(back[0], values)
    np.testing.assert_array_equal(back[1], positions)
    assert (back[0].dtype, back[1].dtype) == (values.dtype, positions.dtype)


@pytest.mark.parametrize(
    ("n", "m", "share"),
    [(2, 4, 0.5625), (1, 4, 0.28125), (2, 8, 0.3125), (4, 8, 0.5625), (1, 16, 0.078125)],
)
def test_packed_bytes(n: int, m: int, share: float):
    values = jax.ShapeDtypeStruct((8192, 8192 // m, n), jnp.bfloat16)
    positions = jax.ShapeDtypeStruct(values.shape, jnp.uint8)
    packed = jax.eval_shape(functools.partial(nm_tpu.pack, m=m), values, positions)
    assert sum(a.size * a.dtype.itemsize for a in packed) == share * 8192 * 8192 * 2


# Codes by member and by position, of a whole tile and of more, words of part of a chunk and more.
@pytest.mark.parametrize(
    ("n", "m", "groups", "rows", "types", "config"),
    [
        pytest.param(2, 4, 130, 3, "ff", None, id="2:4"),
        pytest.param(1, 4, 512, 1, "bb", nm_tpu.Config(128, 128, 256, True), id="1:4"),
        pytest.param(2, 8, 256, 17, "ff", nm_tpu.Config(256, 256, 128), id="2:8"),
        pytest.param(4, 8, 128, 2, "bi", None, id="4:8 int8"),
        pytest.param(1, 16, 128, 5, "ff", None, id="1:16"),
        pytest.param(3, 5, 100, 2, "bb", None, id="3:5", marks=pytest.mark.slow(reason="one more")),
    ],
)
def test_products_are_those_of_the_dense_weight(
    n: int,
    m: int,
    groups: int,
    rows: int,
    types: str,
    config: nm_tpu.Config | None,
    rng: np.random.Generator,
):
    kinds = {"f": jnp.float32, "b": jnp.bfloat16, "i": jnp.int8}
    k, n_out = m * groups, 140  # part of a second tile of columns
    values, positions, dense = weight(rng, n, m, k, n_out, kinds[types[1]])
    x = jnp.asarray(rng.integers(-4, 5, (rows, k)), kinds[types[0]])

    @jax.jit
    def run(x: jax.Array, values: jax.Array, positions: jax.Array) -> jax.Array:
        packed = nm_tpu.pack(values, positions, m=m)
        return nm_tpu.matmul(x, packed, n=n, m=m, n_out=n_out, config=config, interpret=True)

    y = run(x, values, positions)
    wanted = jnp.asarray(np.asarray(x, np.float64) @ dense, x.dtype)
    np.testing.assert_array_equal(y, wanted)  # sums of small integers are exact
    assert y.dtype == x.dtype


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"dtype": jnp.float32, "n": 3, "m": 5, "k": 8000, "n_out": 7}, None),
        (
            {"device_kind": "TPU v4"},
            "needs a TPU v5e, v5p or v6e, not TPU v4. Use implementation='xla'.",
        ),
        (
            {"dtype": jnp.float16},
            "needs float32 or bfloat16, not float16. Convert x and the weight.",
        ),
        (
            {"m": 32},
            "takes groups of at most 16 members, not 2:32. Use implementation='xla'.",
        ),
        ({"rows": 129}, "takes 1 to 128 rows, not 129. Use implementation='xla'."),
        (
            {"k": 8190},
            "needs k to be a multiple of 4, not 8190. Pad x and the weight with zeros.",
        ),
        (
            {"k": 1 << 17, "rows": 128},
            "cannot hold 128 rows of 131072 entries in fast memory. Split x along its rows.",
        ),
    ],
)
def test_what_is_refused_is_told_with_the_remedy(change: dict[str, Any], reason: str | None):
    asked = {"rows": 1, "k": 8192, "n_out": 8192, "dtype": jnp.bfloat16, "n": 2, "m": 4}
    assert nm_tpu.supports(**({"device_kind": V6E} | asked | change)) == reason


def test_steps_are_cut_for_the_chip():
    assert nm_tpu.default(8, 8192, 8192, 2, 4) == nm_tpu.Config(1024, 128, 128)
    assert nm_tpu.default(8, 8192, 8192, 2, 8) == nm_tpu.Config(1024, 256, 128)
    wide = nm_tpu.Config(1024, 256, 256, narrow=True)
    assert nm_tpu.default(8, 8192, 8192, 2, 4, device_kind=V6E) == wide
    assert nm_tpu.default(8, 8192, 8192, 4, 8).narrow
    assert nm_tpu.default(8, 8192, 130, 2, 4) == nm_tpu.Config(256, 128, 128)
    tried = nm_tpu.configs(8, 8192, 8192, 2, 4)
    assert tried[0] == nm_tpu.default(8, 8192, 8192, 2, 4)
    assert len(tried) == len(set(tried)) > 8
    assert all(c.columns % c.chunk == 0 for c in tried)
    # The values of many kept members take the place of columns.
    assert nm_tpu.default(8, 8192, 8192, 15, 16).columns == 256


def test_steps_of_another_size_are_cut_to_whole_tiles(watched: Any, rng: np.random.Generator):
    values, positions, dense = weight(rng, 2, 4, 400, 30, jnp.float32)
    packed = nm_tpu.pack(values, positions, m=4)
    x = jnp.asarray(rng.integers(-4, 5, (2, 400)), jnp.float32)
    deep = nm_tpu.Config(128, 128, 256)  # tiles have 128 groups
    y = nm_tpu.matmul(x, packed, n=2, m=4, n_out=30, config=deep, interpret=watched)
    np.testing.assert_array_equal(y, np.asarray(x, np.float64) @ dense)


@pytest.mark.parametrize(("groups", "size"), [(2048, 512), (2752, 256), (3584, 512), (100, 128)])
def test_tiles_that_pad_little(groups: int, size: int):
    assert tile(groups, 2, 4) == size
