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
    keys = jax.random.split(jax.random.key(0), 3)
    x, c = jax.random.normal(keys[0], (3, 2, K)), jax.random.normal(keys[1], (3, 2, N))
    b = jax.random.normal(keys[2], (N,))
    (dx, dw, db), y = all_gradients(implementation, x, w, b, c)
    np.testing.assert_allclose(y, np.asarray(x) @ np.asarray(dense) + np.asarray(b), rtol=1e-5)
    np.testing.assert_allclose(dx, np.asarray(c) @ np.asarray(dense).T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(db, np.asarray(c).sum((0, 1)), rtol=1e-5)
    full = np.einsum("abk,abn->kn", x, c)
    assert jax.tree.structure(dw) == jax.tree.structure(w)
    grads = jax.tree.map(lambda g, leaf: leaf if g.dtype == float0 else g, dw, w)
    np.testing.assert_allclose(grads.todense(), np.where(mask, full, 0), rtol=1e-4, atol=1e-5)
    floats = [leaf for leaf in jax.tree.leaves(dw) if leaf.dtype != float0]
    assert len(floats) == 1
    if name == "block":  # padding stays zero, or a step would move it
        assert not np.asarray(dw.data[6:]).any()
        assert np.asarray(dw.data[:6]).all()


def test_vmap_maps_over_layers_and_their_gradients():
    stacked, _, w = stack("block")
    x = jax.random.normal(jax.random.key(1), (DEPTH, 3, K))

    def loss(x: Any, w: Any) -> Any:
        y = jax.vmap(lambda x, w: sparse_matmul(x, w, implementation="xla"))(x, w)
        return jnp.sum(y * y), y

    (dx, dw), y = jax.jit(jax.grad(loss, (0, 1), has_aux=True, allow_int=True))(x, w)
    np.testing.assert_allclose(y, np.asarray(x) @ np.asarray(stacked), rtol=1e-5, atol=1e-5)
    full = 2 * np.einsum("lbk,lbn->lkn", x, y)
    np.testing.assert_allclose(dx, 2 * np.asarray(y) @ np.swapaxes(stacked, 1, 2), rtol=1e-4)
    grads = jax.tree.map(lambda g, leaf: leaf if g.dtype == float0 else g, dw, w)
    want = np.where(np.asarray(stacked) != 0, full, 0)
    np.testing.assert_allclose(grads.todense(), want, rtol=1e-4, atol=1e-4)


def test_half_precision_sums_are_float32():
    dtype = jnp.float16
    w = formats.BlockSparse.from_dense(jnp.ones((64, 2), dtype), block=(4, 2))
    x = jnp.full((1, 64), 0.1, dtype).at[0, 0].set(256)
    got = sparse_matmul(x, w, implementation="xla")
    want = np.asarray(x, np.float32).sum()
    assert got.dtype == dtype
    np.testing.assert_allclose(np.asarray(got, np.float32), [[want, want]], rtol=4e-3)


def test_nan_and_inf_pass_through_as_in_dense():
    w = formats.NMSparse.from_dense(
        jnp.array([[jnp.nan, 0.0], [0.0, jnp.inf], [0.0, 0.0], [1.0, 0.0]]), n=2, m=4
    )
    y = sparse_matmul(jnp.ones((1, 4)), w)
    assert np.isnan(y[0, 0])
    assert y[0, 1] == np.inf


def test_the_result_may_have_another_dtype():
    w = formats.NMSparse.from_dense(jnp.ones((4, 2), jnp.bfloat16), n=4, m=4)
    x = jnp.full((1, 4), 0.3, jnp.bfloat16)
    got = sparse_matmul(x, w, preferred_element_type=jnp.float32)
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
