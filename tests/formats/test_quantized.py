"""Values of 8 bits and their scales: how exact they are, and that they travel together."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxprune import formats
from tests.formats import masks

SHAPE = (2, 16, 6)
LARGEST = {"int8": 127, "float8_e4m3fn": 448}


@functools.cache
def case(name: str) -> tuple[np.ndarray, Any]:
    """A weight with a column of zeros and one of tiny values, and a format with room to spare."""
    rng = np.random.default_rng(0)
    kinds: dict[str, Callable[[], np.ndarray]] = {
        "nm": lambda: masks.nm(SHAPE, 2, 4, rng),
        "block": lambda: masks.blocks(SHAPE, (4, 2), 6, rng),
        "bitmap": lambda: masks.anywhere(SHAPE, 40, rng),
    }
    mask = kinds[name]()
    w = np.where(mask, rng.normal(size=SHAPE), 0).astype(np.float32)
    w[..., 1], w[..., 2] = 0, w[..., 2] * np.float32(1e-36)
    make: dict[str, Callable[[Any, Any], Any]] = {
        "nm": lambda w, mask: formats.NMSparse.from_dense(w, mask, n=2, m=4),
        "block": lambda w, mask: formats.BlockSparse.from_dense(w, mask, block=(4, 2), slots=8),
        "bitmap": lambda w, mask: formats.Bitmap.from_dense(w, mask, count=45),
    }
    return w, make[name](jnp.asarray(w), jnp.asarray(mask))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("nm", "int8"),
        ("nm", "float8_e4m3fn"),
        ("block", "int8"),
        ("block", "float8_e4m3fn"),
        ("bitmap", "int8"),
    ],
)
def test_values_are_the_nearest_multiples_of_the_scale(name: str, dtype: str):
    w, sparse = case(name)
    quantized = sparse.quantize(jnp.dtype(dtype))
    scale = np.asarray(quantized.scale)
    largest, tiny = np.abs(w).max(-2), np.finfo(np.float32).tiny
    want = np.maximum(largest / np.float32(LARGEST[dtype]), tiny)
    np.testing.assert_allclose(scale, want, rtol=2e-7)  # divided, or times the inverse
    assert scale.dtype == np.float32
    got, scale = np.asarray(quantized.todense()), scale[:, None]
    # Half a step: of int8, the scale; of float8, 2^-3 of the power of two, at least 2^-9.
    half = scale / 2 if dtype == "int8" else np.maximum(np.abs(w) / 16, scale / 1024)
    assert (np.abs(got - w) <= half * (1 + 1e-6)).all()
    assert not got[w == 0].any()
    exact = np.round(w / scale) if dtype == "int8" else w / scale
    steps = exact.astype(ml_dtypes.float8_e4m3fn if dtype != "int8" else np.int8)
    np.testing.assert_array_equal(got, steps.astype(np.float32) * scale)
    assert (quantized.shape, quantized.dtype, quantized.value_dtype.name) == (SHAPE, "f4", dtype)
    saved = sparse.nbytes - quantized.nbytes
    assert saved == quantized.scale.size * -4 + 3 * sum(
        leaf.size for leaf in jax.tree.leaves(quantized) if leaf.dtype == dtype
    )
    assert repr(quantized) == repr(sparse)[:-1] + f", {dtype} values)"


@pytest.mark.parametrize("name", ["nm", "block", "bitmap"])
def test_scales_go_with_their_layers(name: str):
    _, sparse = case(name)
    whole = sparse.quantize(jnp.int8)

    @jax.jit
    def around(sparse: Any) -> Any:
        mapped = jax.vmap(lambda layer: layer.quantize(jnp.int8))(sparse)
        scanned = jax.lax.scan(lambda _, layer: (None, layer.todense()), None, mapped)[1]
        return scanned, mapped[1].todense()

    scanned, last = around(sparse)
    want = np.asarray(whole.todense())
    np.testing.assert_array_equal(scanned, want)
    np.testing.assert_array_equal(last, want[1])


def test_another_dtype_is_that_of_the_dense_weight():
    quantized = case("nm")[1].quantize(jnp.int8)
    half = quantized.astype(jnp.bfloat16)
    assert (half.dtype, half.value_dtype, half.scale.dtype) == (jnp.bfloat16, jnp.int8, "f4")
    want = np.asarray(quantized.todense()).astype(jnp.bfloat16)
    np.testing.assert_array_equal(half.todense(), want)


def test_a_file_gives_values_and_scales_back(tmp_path: Path):
    tree = {
        f"{name}/{dtype}": case(name)[1].quantize(jnp.dtype(dtype)).astype(jnp.bfloat16)
        for name, dtype in [("nm", "int8"), ("block", "float8_e4m3fn"), ("bitmap", "int8")]
    }
    formats.save_file(tree, tmp_path / "x.safetensors")
    got = formats.load_file(tmp_path / "x.safetensors")
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    assert [leaf.dtype for leaf in jax.tree.leaves(got)] == [
        leaf.dtype for leaf in jax.tree.leaves(tree)
    ]
    jax.tree.map(np.testing.assert_array_equal, got, tree)


def test_only_scales_have_gradients():
    sparse = case("nm")[1].quantize(jnp.float8_e4m3fn)
    grads = jax.jit(jax.grad(lambda w: jnp.sum(w.todense()), allow_int=True))(sparse)
    values = np.asarray(sparse.packed.values, np.float32)
    np.testing.assert_allclose(grads.scale, values.sum((-1, -2)), rtol=1e-6)
    assert not np.asarray(grads.packed.values, np.float32).any()


def test_inside_jit_a_column_that_is_not_finite_is_nan():
    w = np.ones((4, 3), np.float32)
    w[0, 1], w[2, 2] = np.inf, np.nan
    run = jax.jit(lambda w: formats.NMSparse.from_dense(w, n=4, m=4).quantize(jnp.int8).todense())
    np.testing.assert_allclose(run(w), np.broadcast_to([1, np.nan, np.nan], (4, 3)), rtol=1e-6)


def with_infinity(packed: Any) -> Any:
    values = np.array(packed.values)
    values[1, 4, 0, 0] = np.inf
    return packed._replace(values=values)


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "dtype": (
        lambda: case("nm")[1].quantize(jnp.int4),
        TypeError,
        "NMSparse: quantize takes jnp.int8 or jnp.float8_e4m3fn, got <class 'jax.numpy.int4'>.",
    ),
    "no dtype": (
        lambda: case("block")[1].quantize("eight"),
        TypeError,
        "BlockSparse: quantize takes jnp.int8 or jnp.float8_e4m3fn, got 'eight'.",
    ),
    "twice": (
        lambda: case("bitmap")[1].quantize(jnp.int8).quantize(jnp.int8),
        ValueError,
        "Bitmap: it holds int8 values already. Quantize the weight that they were made of.",
    ),
    "infinity": (
        lambda: dataclasses.replace(
            case("nm")[1], packed=with_infinity(case("nm")[1].packed)
        ).quantize(jnp.int8),
        ValueError,
        "NMSparse: column (1, 4) holds NaN or inf, the first of 1; int8 values have one finite "
        "scale for each column. Mend the weights first.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_quantized_is_refused(name: str):
    call, kind, text = BAD[name]
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == text
