"""What the transforms ask of a graph: where, patterns, layers, matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from tests.graph import frameworks, models
from tests.graph.cases import inputs, weights

X = jax.ShapeDtypeStruct((5, 4), jnp.float32)


def w(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def traced(case):
    return jaxprune.trace(case.fn, case.params, *case.inputs)


def test_a_stacked_model_is_pruned_layer_by_layer_along_its_inputs():
    def fn(p, x):
        x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, p["blocks"])
        return (x @ p["head"].T) * p["scale"][None]

    params = weights(blocks=(2, 8, 8), head=(3, 8), scale=(3,))
    graph = jaxprune.trace(fn, params, inputs(5, 8))
    masks = jaxprune.make_masks(
        params,
        0.5,
        where=graph.where(),
        pattern=jaxprune.NM(2, 4, axis=graph),
    )
    blocks, head = np.asarray(masks["blocks"]), np.asarray(masks["head"])  # [layer, in, out]
    assert (blocks.reshape(2, 2, 4, 8).sum(2) == 2).all()
    assert (head.reshape(3, 2, 4).sum(2) == 2).all()
    assert not hasattr(masks["scale"], "dtype")


def test_groups_run_through_heads_and_head_dimension():
    case = frameworks.vit()
    pattern = jaxprune.NM(2, 8, axis=traced(case))
    assert pattern.at("attention/out/kernel") == jaxprune.NM(2, 8, axis=(0, 1))
    assert pattern.at("attention/query/kernel") == jaxprune.NM(2, 8, axis=0)


def test_axes_of_a_pattern_are_counted_without_the_layer_axis():
    case = models.llama()
    graph = traced(case)
    assert (graph.axis("blocks/o"), graph.pattern_axis("blocks/o")) == (1, 0)
    assert graph.layers()["^blocks/o$"] == 0
    assert "^embed$" not in graph.layers()


def test_integers_are_not_selected():
    graph = jaxprune.trace(
        lambda p, x: x @ p["w"].astype(jnp.float32), {"w": w(4, 2, dtype=jnp.int8)}, X
    )
    assert graph.uses[0].features
    assert graph.where().chosen == frozenset()


def message(function, *args, error=ValueError):
    with pytest.raises(error) as caught:
        function(*args)
    return str(caught.value)


def test_another_tree_is_an_error():
    graph = jaxprune.trace(lambda p, x: x @ p["w"], {"w": w(4, 2)}, X)
    assert message(graph.where(), "model/w", None) == (
        "where=graph.where() is asked about 'model/w', which the graph does not have; it has w. "
        "Trace the function with the same tree of parameters that is pruned."
    )
    assert message(graph.axis, "model/w") == (
        "the graph has no parameter 'model/w'; it has w. "
        "Trace the function with the same tree of parameters."
    )


@pytest.mark.parametrize(
    ("fn", "want"),
    [
        (
            lambda p, x: x * p["w"],
            "'w' has no axis of input features: mul sums over none of its axes. "
            "Exclude it with where=graph.where().",
        ),
        (
            lambda p, x: x @ jnp.exp(p["w"]),
            "'w' has no axis of input features: a zero of it is no zero in dot_general. "
            "Exclude it with where=graph.where().",
        ),
        (
            lambda p, x: x + p["w"] @ p["w"],
            "'w' has no axis of input features: dot_general multiplies it with another parameter. "
            "Exclude it with where=graph.where().",
        ),
        (
            lambda p, x: x @ p["w"] @ p["w"].T,
            "'w' is used along different axes: [(0,), (1,)]. "
            "Choose one and pass it as the pattern's axis.",
        ),
        (
            lambda p, x: jnp.einsum("ti,igo->tgo", x[:, :2], p["w"].reshape(2, 2, 4)),
            "'w': consecutive weights along axis 0 belong to different inputs (they are 2 apart at "
            "dot_general (2,)). Exclude it with where=.",
        ),
    ],
    ids=["elementwise", "exp", "product", "both", "strided"],
)
def test_a_weight_without_one_input_axis_is_an_error(fn, want):
    graph = jaxprune.trace(fn, {"w": w(4, 4)}, w(4, 4))
    got = message(graph.axis, "w")
    assert got == want.replace("(2,)", str(graph.uses[0].site))


def test_a_pattern_whose_axes_a_graph_knows_needs_a_path():
    graph = jaxprune.trace(lambda p, x: x @ p["w"], {"w": w(4, 2)}, X)
    pattern = jaxprune.NM(2, 4, axis=graph)
    assert repr(pattern) == "NM(n=2, m=4, axis=graph)"
    assert message(pattern.mask, jnp.ones((4, 2)), 2) == (
        "NM(n=2, m=4, axis=graph) has a graph for its axis and is asked about an array without a "
        "path. Take at(path) of it, the pattern of one parameter."
    )
    tx = jaxprune.rigl(optax.sgd(0.1), 0.5, every=2, end=4, pattern=pattern)
    state = tx.init({"w": jnp.ones((4, 2))})
    assert jaxprune.get_masks(state)["w"].sum(0).tolist() == [2, 2]


MATRICES = {
    "mlp": {"first": (6, 8), "last": (8, 4)},
    "cnn": {"plain": (27, 4), "grouped": (2, 18, 3), "depthwise": (6, 9, 1), "torch": (6, 2)},
    "llama_scanned": {"blocks/q": (2, 8, 16), "embed": (8, 11)},
    "experts": {"mixed": (4, 6, 6), "ragged": (4, 6, 3), "router": (6, 4)},
    "indexed": {"loop": (3, 4, 4), "listed": (2, 4, 4)},
    "relaid": {"output": (8, 6), "diagonal": (2, 3, 5), "right": (4, 5), "fused": (6, 8)},
}


@pytest.mark.parametrize("case", [c for c in models.ALL if c.name in MATRICES], ids=repr)
def test_a_weight_as_matrices_and_back(case):
    graph = traced(case)
    leaves = jaxprune._core.paths.flatten(case.params)
    for path, shape in MATRICES[case.name].items():
        matrix = graph.matrix(path, leaves[path])
        assert matrix.shape == shape
        np.testing.assert_array_equal(graph.from_matrix(path, matrix), leaves[path])


def test_a_convolution_is_a_product_of_its_matrix_with_patches():
    params, x = weights(k=(3, 3, 4, 6)), inputs(1, 3, 3, 4)

    def fn(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, p["k"], (1, 1), "VALID", dimension_numbers=numbers, feature_group_count=1
        )

    graph = jaxprune.trace(fn, params, x)
    want = x.reshape(1, -1) @ graph.matrix("k", params["k"])
    np.testing.assert_allclose(fn(params, x)[0, 0], want, rtol=1e-5)


def test_a_weight_that_is_no_matrix_is_an_error():
    graph = jaxprune.trace(lambda p, x: x * p["w"], {"w": w(1, 4)}, X)
    assert message(graph.matrix, "w", jnp.ones((1, 4))) == (
        "'w' cannot be written as matrices: it has no whole axes of input features."
    )
