"""Products with every format are those with the dense weight, forward and backward."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.dtypes import float0

from jaxprune import formats, kernels
from tests.formats import masks
from tests.kernels import fake_nm

K, N, DEPTH = 16, 10, 2
sparse_matmul = kernels.sparse_matmul


@functools.cache
def stack(name: str) -> tuple[jax.Array, jax.Array, Any]:
    """Layers of a weight that are packed, the masks, and the format."""
    rng, shape = np.random.default_rng(0), (DEPTH, K, N)
    kinds = {
        "2:4": lambda: masks.nm(shape, 2, 4, rng),
        "block": lambda: masks.blocks(shape, (4, 2), 6, rng),
        "bitmap": lambda: masks.anywhere(shape, 40, rng),
    }
    kept = kinds[name]()
    w = jnp.asarray(np.where(kept, rng.normal(size=shape), 0).astype(np.float32))
    mask = jnp.asarray(kept)
    make: dict[str, Callable[[], Any]] = {
        "2:4": lambda: formats.NMSparse.from_dense(w, mask, n=2, m=4),
        "block": lambda: formats.BlockSparse.from_dense(w, mask, block=(4, 2), slots=9),
        "bitmap": lambda: formats.Bitmap.from_dense(w, mask),
    }
    return w, mask, make[name]()


def normal(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@functools.partial(jax.jit, static_argnums=0)
def all_gradients(implementation: str | None, x: Any, w: Any, b: Any, c: Any) -> Any:
    def loss(x: Any, w: Any, b: Any) -> Any:
        y = sparse_matmul(x, w, bias=b, implementation=implementation)
        return jnp.sum(y * c), y

    return jax.grad(loss, (0, 1, 2), has_aux=True, allow_int=True)(x, w, b)


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("2:4", "xla"), ("bitmap", "xla"), ("block", "xla"), ("block", "dense")],
)
def test_product_and_gradients_are_those_of_the_dense_weight(name: str, implementation: str):
    stacked, kept, packed = stack(name)
    dense, mask, w = stacked[0], kept[0], packed[0]
    x, c, b = normal((3, 2, K), (3, 2, N), (N,))
    (dx, dw, db), y = all_gradients(implementation, x, w, b, c)
    np.testing.assert_allclose(y, x @ np.asarray(dense) + b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, c @ np.asarray(dense).T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(db, c.sum((0, 1)), rtol=1e-5)
    full = np.einsum("abk,abn->kn", x, c)
    assert jax.tree.structure(dw) == jax.tree.structure(w)
    grads = jax.tree.map(lambda g, leaf: leaf if g.dtype == float0 else g, dw, w)
    np.testing.assert_allclose(grads.todense(), np.where(mask, full, 0), rtol=1e-4, atol=1e-5)
    floats = [leaf for leaf in jax.tree.leaves(dw) if leaf.dtype != float0]
    assert len(floats) == 1
    if name == "block":  # padding stays zero, or a step would move it
        assert not np.asarray(dw.data[6:]).any()
        assert np.asarray(dw.data[:6]).all()


@pytest.mark.parametrize(("name", "dtype"), [("2:4", jnp.int8), ("block", jnp.float8_e4m3fn)])
def test_quantized_weights_multiply_as_the_weights_that_they_stand_for(name: str, dtype: Any):
    w = stack(name)[2][0].quantize(dtype)
    x, c, b = normal((3, 2, K), (3, 2, N), (N,))
    (dx, dw, _), y = all_gradients("xla", x, w, b, c)
    dense = np.asarray(w.todense())
    np.testing.assert_allclose(y, x @ dense + b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, c @ dense.T, rtol=1e-4, atol=1e-5)
    full = np.einsum("abk,abn->kn", x, c)
    scaled = np.sum(full * dense / np.asarray(w.scale), 0)  # of one weight: gradient * value
    np.testing.assert_allclose(dw.scale, scaled, rtol=1e-4, atol=1e-3)
    assert jax.tree.structure(dw) == jax.tree.structure(w)
    for grad, leaf in zip(jax.tree.leaves(dw), jax.tree.leaves(w), strict=True):
        frozen = jnp.issubdtype(leaf.dtype, jnp.integer)
        assert grad.dtype == (float0 if frozen else leaf.dtype)
        if leaf.dtype == jnp.float8_e4m3fn:
            assert not np.asarray(grad, np.float32).any()


def test_quantized_values_are_summed_before_they_are_rounded():
    w = stack("2:4")[2][0].quantize(jnp.int8)
    x = normal((3, K))[0].astype(jnp.bfloat16)
    got = jax.jit(sparse_matmul)(x, w.astype(jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    want = np.asarray(x, np.float32) @ np.asarray(w.todense())
    np.testing.assert_array_equal(got, want.astype(got.dtype))
    large = np.full((1, K), 300, np.float16)  # times 127, it is not a float16
    got = jax.jit(sparse_matmul)(large, w.astype(jnp.float16))
    np.testing.assert_allclose(
        np.asarray(got, np.float32), 300 * np.asarray(w.todense()).sum(0)[None], rtol=1e-3
    )


def test_kernels_refuse_quantized_values_unless_they_say_so(monkeypatch: pytest.MonkeyPatch):
    kernel = kernels.Candidate("mosaic_gpu", "cpu", "nm", "tests.kernels.fake_nm", ("int8",))
    monkeypatch.setattr(kernels.dispatch, "CANDIDATES", (kernel,))
    w, (x,) = stack("2:4")[2][0], normal((3, K))
    eight, seen, matmul = w.quantize(jnp.int8), [], fake_nm.matmul

    def watched(x: Any, packed: Any, **more: Any) -> Any:
        seen.append(packed.stream.dtype)
        return matmul(x, packed, **more)

    monkeypatch.setattr(fake_nm, "matmul", watched)

    def loss(x: Any, w: Any) -> Any:
        return jnp.sum(sparse_matmul(x, w, implementation="fake_nm") ** 2)

    dx, dw = jax.jit(jax.grad(loss, (0, 1), allow_int=True))(x, eight)
    dense, scale = np.asarray(eight.todense()), np.asarray(eight.scale)
    assert seen == [jnp.int8]
    dy = 2 * (x @ dense)
    np.testing.assert_allclose(dx, dy @ dense.T, rtol=1e-4, atol=1e-5)
    want = np.sum(x.T @ dy * dense / scale, 0)
    np.testing.assert_allclose(dw.scale, want, rtol=1e-4, atol=1e-2)
    with pytest.raises(ValueError) as error:
        sparse_matmul(x, w.quantize(jnp.float8_e4m3fn), implementation="fake_nm")
    assert str(error.value) == (
        "implementation='fake_nm' cannot multiply 3 rows with NMSparse([16, 10], float32, 2:4, "
        "float8_e4m3fn values): fake_nm takes no float8_e4m3fn values. implementation='xla' takes "
        "everything."
    )


def test_vmap_maps_over_layers_and_their_gradients():
    stacked, _, w = stack("block")
    (x,) = normal((DEPTH, 3, K))

    def loss(x: Any, w: Any) -> Any:
        y = jax.vmap(lambda x, w: sparse_matmul(x, w, implementation="xla"))(x, w)
        return jnp.sum(y * y), y

    (dx, dw), y = jax.jit(jax.grad(loss, (0, 1), has_aux=True, allow_int=True))(x, w)
    np.testing.assert_allclose(y, x @ np.asarray(stacked), rtol=1e-5, atol=1e-5)
    full = 2 * np.einsum("lbk,lbn->lkn", x, y)
    np.testing.assert_allclose(dx, 2 * np.asarray(y) @ np.swapaxes(stacked, 1, 2), rtol=1e-4)
    grads = jax.tree.map(lambda g, leaf: leaf if g.dtype == float0 else g, dw, w)
    want = np.where(np.asarray(stacked) != 0, full, 0)
    np.testing.assert_allclose(grads.todense(), want, rtol=1e-4, atol=1e-4)


def test_half_precision_sums_are_float32():
    dtype = jnp.float16
    w = formats.BlockSparse.from_dense(np.ones((64, 2), dtype), block=(4, 2))
    x = np.full((1, 64), 0.1, dtype)
    x[0, 0] = 256
    got = jax.jit(functools.partial(sparse_matmul, implementation="xla"))(x, w)
    want = np.asarray(x, np.float32).sum()
    assert got.dtype == dtype
    np.testing.assert_allclose(np.asarray(got, np.float32), [[want, want]], rtol=4e-3)


def test_nan_and_inf_pass_through_as_in_dense():
    dense = np.array([[np.nan, 0.0], [0.0, np.inf], [0.0, 0.0], [1.0, 0.0]], np.float32)
    y = jax.jit(sparse_matmul)(
        np.ones((1, 4), np.float32), formats.NMSparse.from_dense(dense, n=2, m=4)
    )
    assert np.isnan(y[0, 0])
    assert y[0, 1] == np.inf


def test_the_result_may_have_another_dtype():
    w = formats.NMSparse.from_dense(np.ones((4, 2), jnp.bfloat16), n=4, m=4)
    x = np.full((1, 4), 0.3, jnp.bfloat16)
    got = jax.jit(functools.partial(sparse_matmul, preferred_element_type=jnp.float32))(x, w)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, 4 * float(jnp.bfloat16(0.3)), rtol=1e-6)


def test_an_empty_batch_gives_an_empty_result():
    w = stack("2:4")[2][0]
    assert sparse_matmul(jnp.ones((0, K)), w).shape == (0, N)
    assert sparse_matmul(jnp.ones(K), w).shape == (N,)


BAD: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "dense": (
        lambda w: sparse_matmul(jnp.ones((1, K)), jnp.ones((K, N))),
        TypeError,
        "w must be an NMSparse, a BlockSparse or a Bitmap, got ArrayImpl. Make one with its "
        "from_dense, or multiply a dense weight with x @ w.",
    ),
    "stacked": (
        lambda w: sparse_matmul(jnp.ones((1, K)), w),
        ValueError,
        "w of shape (2, 16, 10) stacks layers; a product takes one. Take it with w[i], or map over "
        "layers with jax.vmap(jaxprune.sparse_matmul).",
    ),
    "length": (
        lambda w: sparse_matmul(jnp.ones((1, K + 1)), w[0]),
        ValueError,
        "x of shape (1, 17) does not fit w of shape (16, 10): the last axis of x must have length "
        "16.",
    ),
    "dtype": (
        lambda w: sparse_matmul(jnp.ones((1, K), jnp.bfloat16), w[0]),
        TypeError,
        "x has dtype bfloat16 and w has float32; they must be the same. Convert one: "
        "w.astype(x.dtype), or x.astype(w.dtype).",
    ),
    "bias": (
        lambda w: sparse_matmul(jnp.ones((1, K)), w[0], bias=jnp.ones((1, N))),
        ValueError,
        "bias must have shape (10,), got (1, 10).",
    ),
    "precision": (
        lambda w: sparse_matmul(
            jnp.ones((1, K)), w[0], implementation="mosaic_gpu", precision="highest"
        ),
        ValueError,
        "implementation='mosaic_gpu' takes rows, and neither precision nor another "
        "preferred_element_type; implementation='xla' takes everything.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name: str):
    call, kind, text = BAD[name]
    with pytest.raises(kind) as error:
        call(stack("2:4")[2])
    assert str(error.value) == text
