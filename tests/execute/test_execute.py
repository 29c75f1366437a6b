"""Functions on compressed weights do what they do on dense ones, and say where they could not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.dtypes import float0

import jaxprune
from jaxprune import formats, kernels, patterns
from jaxprune._core import paths
from jaxprune.execute import execute, pack
from jaxprune.execute.views import is_packed
from jaxprune.kernels import dispatch

D, HEADS, WIDTH, DEPTH = 8, 2, 4, 2


@jax.custom_vjp
def scaled(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


scaled.defvjp(lambda x, w: (x @ w, (x, w)), lambda s, g: (3.0 * (g @ s[1].T), 5.0 * (s[0].T @ g)))


def block(x: jax.Array, w: Any) -> tuple[jax.Array, None]:
    q, k, v = (jnp.einsum("td,dhk->thk", x, w[n]) for n in ("q", "k", "v"))
    mixed = jnp.einsum("hqv,vhk->qhk", jax.nn.softmax(jnp.einsum("qhk,vhk->hqv", q, k)), v)
    turned = mixed.transpose(0, 2, 1), w["out"].transpose(1, 0, 2)  # (head_dim, heads, d)
    x = x + lax.dot_general(*turned, (((1, 2), (0, 1)), ((), ())))
    return x + jax.nn.silu(x @ w["up"]) @ w["down"].T, None


def model(p: Any, x: jax.Array) -> jax.Array:
    x, _ = lax.scan(jax.checkpoint(block), x, p["blocks"])
    x = (p["first"] @ x.T).T  # the weight on the left
    x = jnp.einsum("ta,ahk->tkh", x, p["merged"].reshape(D, HEADS, WIDTH)).reshape(-1, D)
    x = lax.cond(x[0, 0] > 0, lambda w: x @ w, lambda w: x @ w * 2, p["cond"])
    x = scaled(x, p["ruled"])
    x = x + sum(x @ p["indexed"][i] for i in range(DEPTH))
    x = lax.fori_loop(0, 2, lambda i, x: jnp.tanh(x @ p["loop"]), x)
    return x * jnp.tanh(p["bias"])[None] + x @ p["half"].astype(jnp.float32)


SHAPES: dict[str, tuple[int, ...]] = {
    "blocks/q": (DEPTH, D, HEADS, WIDTH),
    "blocks/k": (DEPTH, D, HEADS, WIDTH),
    "blocks/v": (DEPTH, D, HEADS, WIDTH),
    "blocks/out": (DEPTH, HEADS, WIDTH, D),
    "blocks/up": (DEPTH, D, D),
    "blocks/down": (DEPTH, D, D),
    "first": (D, D),
    "merged": (D, D),
    "cond": (D, D),
    "ruled": (D, D),
    "indexed": (DEPTH, D, D),
    "loop": (D, D),
    "half": (D, D),
    "bias": (D,),
}


INPUTS = {"blocks/out": (1, 2), "blocks/down": (2,), "first": (1,), "indexed": (1,)}


def weights() -> dict[str, Any]:
    tree: dict[str, Any] = {"blocks": {}}
    rng = np.random.default_rng(1)
    for path, shape in SHAPES.items():
        at = tree["blocks"] if path.startswith("blocks/") else tree
        at[path.removeprefix("blocks/")] = rng.normal(0, 0.5, shape).astype(np.float32)
    return tree


def mask(path: str, rng: np.random.Generator) -> np.ndarray:
    """Two of every four along the input axes, which are written down by hand."""
    shape = SHAPES[path]
    if path == "bias":
        return np.ones(shape, bool)
    axes = INPUTS.get(path, (1,) if path.startswith("blocks/") else (0,))
    rest = [a for a in range(len(shape)) if a not in axes]
    moved = [shape[a] for a in (*rest, *axes)]
    kept = np.argsort(rng.random((np.prod(shape) // 4, 4)), -1) < 2
    return np.transpose(kept.reshape(moved), np.argsort((*rest, *axes)))


Case = tuple[Any, Any, jax.Array, jaxprune.graph.Graph, Any]


@pytest.fixture(scope="module")
def case() -> Case:
    """Pruned parameters, masks, inputs, the graph, and the parameters packed."""
    rng = np.random.default_rng(0)
    masks = paths.refill(weights(), {}, lambda path, leaf: mask(path, rng))
    params = jax.tree.map(lambda w, kept: np.where(kept, w, np.float32(0)), weights(), masks)
    params["half"] = jnp.asarray(params["half"], jnp.bfloat16)  # a cast of it is exact
    x = jnp.asarray(rng.normal(size=(3, D)).astype(np.float32))
    graph = jaxprune.trace(model, params, x)
    packed = pack(params, masks, graph=graph, format=patterns.NM(2, 4))
    assert packed.dense == {}
    return params, masks, x, graph, packed.params


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a kernel for N:M weights and up to 8 rows, which is here."""
    candidate = kernels.Candidate("mosaic_gpu", "cpu", "nm", "tests.kernels.fake_nm")
    monkeypatch.setattr(dispatch, "CANDIDATES", (candidate,))
    return "fake_nm"


@pytest.mark.standard_promotion  # the functions are written as users write them
def test_every_way_to_a_product_gives_the_dense_result(case: Case, kernel: str):
    params, _, x, _, packed = case
    assert sum(map(is_packed, jax.tree.leaves(packed, is_leaf=is_packed))) == len(SHAPES) - 1
    fast = execute(model, packed, implementation=kernel)
    assert fast.densified(x) == ()
    want = jax.jit(model)(params, x)
    np.testing.assert_allclose(jax.jit(fast)(packed, x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.slow(reason="compiles the gradients of fifteen products, twice")
@pytest.mark.standard_promotion
def test_every_way_to_a_product_gives_the_gradients_of_the_dense_weights(case: Case, kernel: str):
    params, masks, x, _, packed = case

    def gradients(run: Any, params: Any) -> Any:
        loss = lambda params, x: jnp.sum(run(params, x) ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1), allow_int=True))(params, x)

    grads, dx = gradients(model, params)
    sparse, sparse_dx = gradients(execute(model, packed, implementation=kernel), packed)
    np.testing.assert_allclose(sparse_dx, dx, rtol=1e-4, atol=1e-5)
    floats = jax.tree.map(lambda g, w: w if g.dtype == float0 else g, sparse, packed)
    dense = jax.tree.map(lambda n: n.todense() if is_packed(n) else n, floats, is_leaf=is_packed)
    found = paths.flatten(dense)
    for path, leaf in paths.flatten(jaxprune.apply_masks(grads, masks)).items():
        # Its gradient is rounded to bfloat16.
        close = {"rtol": 2e-2, "atol": 1e-2} if path == "half" else {"rtol": 2e-3, "atol": 1e-4}
        pair = (np.asarray(g, np.float32) for g in (found[path], leaf))
        np.testing.assert_allclose(*pair, **close, err_msg=path)


@pytest.mark.standard_promotion
def test_prepared_weights_are_the_dense_ones(case: Case):
    params, _, x, _, packed = case
    prepared = execute(model, packed).prepared(x)
    assert jax.tree.structure(prepared) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, prepared, params)
    view = packed["blocks"]["out"]
    assert repr(view) == "MatrixView([2, 2, 4, 8] as NMSparse([2, 8, 8], float32, 2:4))"
    assert view.shape == SHAPES["blocks/out"]
    assert isinstance(packed["cond"], formats.NMSparse)
    assert isinstance(packed["blocks"]["up"], formats.NMSparse)


def odd(p: Any, x: jax.Array) -> jax.Array:
    def turn(w: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return -w, x @ w

    carried = lax.scan(turn, p["carried"], None, length=2)[1].sum(0)
    return carried + x @ p["fine"] + x @ jnp.sin(p["bent"]) + p["table"][0] + x @ p["table"].T


def odd_case() -> tuple[Any, jax.Array, jaxprune.graph.Graph]:
    w = np.where(np.arange(8)[:, None] % 4 < 2, np.arange(64).reshape(8, 8), 0).astype(np.float32)
    params = {"carried": w, "fine": w, "bent": w, "table": w.T}
    x = jnp.ones((2, 8))
    return params, x, jaxprune.trace(odd, params, x)


@pytest.mark.standard_promotion
def test_what_cannot_be_packed_is_listed():
    params, _, graph = odd_case()
    packed = pack(params, graph=graph, format=patterns.NM(2, 4))
    assert packed.dense == {"table": "it is used by add, too"}
    assert isinstance(packed.params["fine"], formats.NMSparse)


@pytest.mark.standard_promotion
def test_what_is_made_dense_on_the_way_is_listed_and_right():
    params, x, _ = odd_case()
    compressed = {k: formats.NMSparse.from_dense(v, n=2, m=4) for k, v in params.items()
                  if k != "table"}  # fmt: skip
    compressed["table"] = params["table"]
    fast = execute(odd, compressed)
    np.testing.assert_allclose(jax.jit(fast)(compressed, x), jax.jit(odd)(params, x), rtol=1e-5)
    noted = {(note.path, note.primitive, note.reason) for note in fast.densified(x)}
    assert noted == {
        ("carried", "scan", "a loop carries it from turn to turn"),
        ("bent", "sin", "sin takes arrays"),
        (
            "fine",
            "dot_general",
            "with 2 rows, nothing is known to be faster than dense on 'cpu'",
        ),
    }


@pytest.mark.standard_promotion
def test_another_product_than_the_packed_one_is_dense():
    w = formats.NMSparse.from_dense(jnp.eye(8), n=1, m=4)
    x = jnp.arange(16.0).reshape(2, 8)
    cases: dict[str, Callable[..., Any]] = {
        "the product sums over other axes than the packed ones": lambda p, x: x @ p["w"].T,
        "the product is one for each entry of a batch axis": lambda p, x: jnp.einsum(
            "bi,ij->bi", x, p["w"]
        )
        + jnp.einsum("ij,ij->i", x[:1] + jnp.zeros((8, 1)), p["w"]).sum(),
        "it is float32 and the other operand bfloat16": lambda p, x: lax.dot_general(
            x.astype(jnp.bfloat16), p["w"], (((1,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        ),
        "it is multiplied with another compressed weight": lambda p, x: x @ (p["w"] @ p["w"]),
    }  # fmt: skip
    for reason, fn in cases.items():
        fast = execute(fn, {"w": w})
        want = jax.jit(fn)({"w": np.eye(8, dtype=np.float32)}, x)
        np.testing.assert_allclose(jax.jit(fast)({"w": w}, x), want, rtol=1e-2)
        assert reason in {note.reason for note in fast.densified(x)}, reason


def one(p: Any, x: jax.Array) -> jax.Array:
    return x @ p["w"]


def graph_of_one() -> jaxprune.graph.Graph:
    return jaxprune.trace(one, {"w": jnp.ones((8, 8))}, jnp.ones((1, 8)))


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "nothing fits": (
        lambda: pack({"w": jnp.ones((8, 8))}, graph=graph_of_one(), format=patterns.NM(2, 4)),
        ValueError,
        "pack: no weight fits format=NM(n=2, m=4). w: NMSparse: 'w' is not 2:4: 16 groups of 4 "
        "along axis -2 keep more than 2, the first is group 0 of output 0. Pass a mask made with "
        "pattern=jaxprune.NM(2, 4), or another n.. Prune with the same pattern first, or choose "
        "another format.",
    ),
    "outside": (
        lambda: pack(
            {"w": jnp.ones((8, 8))},
            {"w": jnp.zeros((8, 8), bool)},
            graph=graph_of_one(),
            format=patterns.NM(2, 4),
        ),
        ValueError,
        "pack: 'w' has 64 values outside its mask that are not zero, the first at index (0, 0). "
        "Pass jaxprune.apply_masks(params, masks), or another mask.",
    ),
    "format": (
        lambda: pack({"w": jnp.ones((8, 8))}, graph=graph_of_one(), format="2:4"),
        TypeError,
        "pack: format must be NM(n, m), Block((height, width)), Unstructured() or a function, got "
        "'2:4'.",
    ),
    "dense": (
        lambda: execute(one, {"w": jnp.ones((8, 8))}),
        ValueError,
        "execute: packed holds no compressed weight. Compress the parameters with jaxprune.pack "
        "first.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name: str):
    call, kind, text = BAD[name]
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == text
