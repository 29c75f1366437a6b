"""What every call would make dense is made dense once, and only that."""

import collections
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune import formats, kernels
from jaxprune.execute import execute
from jaxprune.kernels import dispatch, tuning
from tests.formats import masks


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Take what is given, as ``(rows, weight, best)``, for all that was measured."""

    def take(*rows: tuple[int, Any, str]) -> None:
        entries = [tuning.Entry(tuning.product_of(n, w, "cpu"), best, 2.0) for n, w, best in rows]
        monkeypatch.setattr(tuning, "table", lambda: tuple(entries))

    return take


def model(p: Any, x: jax.Array) -> jax.Array:
    def layer(x: jax.Array, w: Any) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ w["pairs"]) @ w["blocks"], None

    x, _ = lax.scan(layer, x, p["layers"])
    return x @ p["bits"]


def weights(rng: np.random.Generator) -> tuple[Any, Any]:
    kept = {
        "pairs": masks.nm((2, 8, 8), 2, 4, rng),
        "blocks": masks.blocks((2, 8, 8), (4, 4), 2, rng),
        "bits": masks.anywhere((8, 6), 20, rng),
    }
    w = {k: np.where(m, rng.normal(size=m.shape), 0).astype(np.float32) for k, m in kept.items()}
    layers = {
        "pairs": formats.NMSparse.from_dense(w["pairs"], n=2, m=4),
        "blocks": formats.BlockSparse.from_dense(w["blocks"], block=(4, 4)),
    }
    packed = {"layers": layers, "bits": formats.Bitmap.from_dense(w["bits"])}
    return {"layers": {k: w[k] for k in layers}, "bits": w["bits"]}, packed


def operations(fn: Any, *args: Any) -> dict[str, int]:
    text = jax.jit(fn).lower(*args).as_text()
    return collections.Counter(re.findall(r"stablehlo\.\w+", text))


def test_where_nothing_is_faster_the_program_is_that_of_dense_weights(
    measured: Any, rng: np.random.Generator
):
    measured()
    dense, packed = weights(rng)
    x = rng.normal(size=(3, 8)).astype(np.float32)
    fast = execute(model, packed)
    assert {note.path for note in fast.densified(x)} == {"layers/pairs", "layers/blocks", "bits"}
    prepared = fast.prepared(jax.ShapeDtypeStruct(x.shape, x.dtype))
    jax.tree.map(np.testing.assert_array_equal, prepared, dense)
    assert operations(fast, prepared, x) == operations(model, dense, x)
    assert operations(fast, packed, x) != operations(model, dense, x)
    want = jax.jit(model)(dense, x)
    np.testing.assert_array_equal(jax.jit(fast)(prepared, x), want)
    np.testing.assert_allclose(jax.jit(fast)(packed, x), want, rtol=1e-5)


def test_what_is_faster_stays_compressed(measured: Any, rng: np.random.Generator):
    dense, packed = weights(rng)
    measured((3, packed["layers"]["blocks"], "xla"))
    fast, x = execute(model, packed), jnp.ones((3, 8))
    prepared = fast.prepared(x)
    assert prepared["layers"]["blocks"] is packed["layers"]["blocks"]
    np.testing.assert_array_equal(prepared["layers"]["pairs"], dense["layers"]["pairs"])
    np.testing.assert_allclose(jax.jit(fast)(prepared, x), jax.jit(model)(dense, x), rtol=1e-5)
    many = fast.prepared(jnp.ones((64, 8)))  # of as many rows nothing was measured
    np.testing.assert_array_equal(many["layers"]["blocks"], dense["layers"]["blocks"])


def test_a_weight_that_one_of_its_products_takes_compressed_stays_so(
    measured: Any, rng: np.random.Generator
):
    w = weights(rng)[1]["layers"]["blocks"][0]
    measured((2, w, "xla"))
    fast = execute(lambda p, few, many: (few @ p["w"], many @ p["w"]), {"w": w})
    inputs = jnp.ones((2, 8)), jnp.ones((64, 8))
    assert fast.prepared(*inputs)["w"] is w
    (note,) = fast.densified(*inputs)
    assert note.reason == "with 64 rows, nothing is known to be faster than dense on 'cpu'"


def test_a_product_that_kernels_cannot_take_is_prepared_for(
    measured: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    candidate = kernels.Candidate("mosaic_gpu", "cpu", "nm", "tests.kernels.fake_nm")
    monkeypatch.setattr(dispatch, "CANDIDATES", (candidate,))
    w = weights(rng)[1]["layers"]["pairs"][0].relaid(dispatch.KernelLayout("fake_nm"))
    measured((2, w, "fake_nm"))
    x = jnp.ones((2, 8))
    assert execute(lambda p, x: x @ p, w).prepared(x) is w
    exact = execute(lambda p, x: jnp.dot(x, p, precision="highest"), w)
    np.testing.assert_array_equal(exact.prepared(x), w.todense())
