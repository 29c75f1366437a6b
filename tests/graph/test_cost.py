"""Operations as XLA counts them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune
from tests.graph import models
from tests.graph.cases import weights
from tests.third_party import leniently


def w(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def counted(fn, *args, compiled=False):
    """What XLA counts."""
    lowered = jax.jit(fn).lower(*args)
    found = lowered.compile().cost_analysis() if compiled else lowered.cost_analysis()
    return (found[0] if isinstance(found, list) else found)["flops"]


CONVOLUTIONS = {
    "same": ((2, 8, 8, 3), (3, 3, 3, 5), {"padding": "SAME"}),
    "valid": ((2, 8, 8, 3), (3, 3, 3, 5), {"padding": "VALID"}),
    "grouped": ((2, 9, 8, 4), (3, 2, 2, 6), {"padding": "VALID", "feature_group_count": 2}),
    "strided": ((2, 9, 8, 4), (3, 2, 4, 6), {"padding": "SAME", "window_strides": (2, 3)}),
    "dilated": ((2, 7, 7, 2), (3, 3, 2, 2), {"padding": ((3, 1), (0, 2)), "rhs_dilation": (1, 2)}),
    "transposed": (
        (2, 5, 5, 4),
        (3, 3, 4, 6),
        {"padding": ((2, 2), (1, 3)), "lhs_dilation": (2, 2)},
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_costs_what_xla_says(name):
    image, kernel, settings = CONVOLUTIONS[name]
    settings = {"window_strides": (1, 1), **settings}

    def fn(k, x):
        return lax.conv_general_dilated(
            x, k, dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings
        )

    graph = jaxprune.trace(lambda p, x: fn(p["k"], x), {"k": w(*kernel)}, w(*image))
    assert graph.cost().total.flops == counted(fn, w(*kernel), w(*image))


def test_a_product_costs_what_xla_says():
    def fn(p, x):
        return jnp.einsum("btd,dhk->bhtk", x, p["w"])

    shapes = {"w": w(8, 2, 3)}, w(2, 5, 8)
    cost = jaxprune.trace(fn, *shapes).cost()
    assert cost.total.flops == counted(fn, *shapes) == 2 * 2 * 5 * 8 * 6
    (row,) = cost.rows
    assert (row.weight_bytes, row.activation_bytes) == (4 * 48, 4 * (80 + 60))


def transformer(width=256, depth=2, length=64):
    heads = 4

    def fn(p, tokens):
        x = p["embed"][tokens]
        b, t, _ = x.shape
        for q in p["blocks"]:
            h = models.rms(x, q["n1"])
            parts = [(h @ q[n]).reshape(b, t, heads, width // heads) for n in "qkv"]
            scores = jnp.einsum("bqhd,bkhd->bhqk", *parts[:2]) / 8.0
            x = (
                x
                + jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), parts[2]).reshape(
                    b, t, width
                )
                @ q["o"]
            )
            h = models.rms(x, q["n2"])
            x = x + (jax.nn.silu(h @ q["gate"]) * (h @ q["up"])) @ q["down"]
        return x @ p["embed"].T

    block = {name: w(width, width) for name in "qkvo"}
    block |= {"gate": w(width, 2 * width), "up": w(width, 2 * width), "down": w(2 * width, width)}
    block |= {"n1": w(width), "n2": w(width)}
    params = {"embed": w(512, width), "blocks": [block] * depth}
    return leniently(fn), params, jax.ShapeDtypeStruct((2, length), jnp.int32)


def test_a_transformer_costs_what_xla_says_within_2_percent():
    fn, params, tokens = transformer()
    cost = jaxprune.trace(fn, params, tokens).cost()
    assert cost.total.flops == pytest.approx(counted(fn, params, tokens, compiled=True), rel=0.02)


@pytest.mark.slow  # compiles a backward pass
def test_training_costs_what_xla_says_within_2_percent():
    fn, params, tokens = transformer()

    def loss(params, tokens):
        return jax.nn.logsumexp(fn(params, tokens), axis=-1).sum()

    cost = jaxprune.trace(loss, params, tokens).cost()
    want = counted(jax.grad(loss), params, tokens, compiled=True)
    assert cost.total.training_flops == pytest.approx(want, rel=0.02)


def test_the_first_layer_needs_no_gradient_of_its_input():
    def fn(p, x):
        return (x @ p["first"]) @ p["second"]

    cost = jaxprune.trace(fn, {"first": w(4, 8), "second": w(8, 2)}, w(3, 4)).cost()
    factors = {row.path: row.training_flops / row.flops for row in cost.rows}
    assert factors == {"first": 2.0, "second": 3.0}


def test_scanned_and_unrolled_layers_cost_the_same():
    costs = []
    for scanned in (True, False):
        case = models.llama(scanned=scanned)
        costs.append(jaxprune.trace(case.fn, case.params, *case.inputs).cost())
    totals = [(c.total.flops, c.total.training_flops, c.total.weight_bytes) for c in costs]
    assert totals[0] == totals[1]
    assert costs[0].activations.flops == costs[1].activations.flops > 0


def test_masks_save_their_share():
    params = weights(first=(4, 8), second=(8, 2))
    graph = jaxprune.trace(lambda p, x: (x @ p["first"]) @ p["second"], params, w(3, 4))
    masks = {"first": jnp.asarray(np.arange(32).reshape(4, 8) % 4 == 0)}
    first, second = graph.cost(masks).rows
    assert (first.density, second.density) == (0.25, 1.0)
    assert first.sparse_flops == first.flops / 4
    assert first.sparse_training_flops == first.training_flops / 4
    assert first.sparse_weight_bytes == 4 * 8
    packed = {"first": jaxprune._core.packing.pack(masks["first"])}
    assert graph.cost(packed).rows[0] == first


def test_joined_weights_share_what_they_cost():
    def fn(p, x):
        return x @ jnp.concatenate([p["a"], p["b"]], axis=1)

    rows = jaxprune.trace(fn, {"a": w(4, 6), "b": w(4, 2)}, w(5, 4)).cost().rows
    assert [row.flops for row in rows] == [2 * 5 * 4 * 6, 2 * 5 * 4 * 2]


def test_the_costliest_branch_and_unknown_loops_count():
    def fn(p, x):
        x = lax.cond(x.sum() > 0, lambda x: x @ p["w"] @ p["w"], lambda x: x @ p["v"], x)
        return lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ p["u"], x)

    cost = jaxprune.trace(fn, dict.fromkeys("wvu", w(4, 4)), w(5, 4)).cost()
    assert {row.path: row.flops for row in cost.rows} == {"u": 160.0, "w": 320.0}
    assert len(cost.unknown) == 1


def test_the_table(capsys):
    case = models.mlp()
    jaxprune.trace(case.fn, case.params, *case.inputs).cost().table()
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r" first +│ 100.00% +│ +480 FLOP │", lines[2])
    assert re.match(r" total +│ 100.00% +│ +800 FLOP │", lines[-1])


@pytest.mark.parametrize(
    ("masks", "want"),
    [
        (
            {"v": np.ones((4, 4), bool)},
            "masks has v, which the graph does not have; it has w. "
            "Trace with the tree that was pruned.",
        ),
        (
            {"w": np.ones((4, 2), bool)},
            "the mask of 'w' has shape (4, 2) and dtype bool; its parameter has shape (4, 4). "
            "Masks are boolean, True = kept.",
        ),
    ],
)
def test_masks_of_another_model_are_an_error(masks, want):
    graph = jaxprune.trace(lambda p, x: x @ p["w"], {"w": w(4, 4)}, w(2, 4))
    with pytest.raises(ValueError) as error:
        graph.cost(masks)
    assert str(error.value) == want
