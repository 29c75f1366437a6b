"""What a use says beyond its axes, and what is said of weights that cannot be followed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune
from jaxprune.graph import Factor
from tests.graph import models
from tests.graph.cases import inputs, weights

X = jax.ShapeDtypeStruct((5, 4), jnp.float32)


def w(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def only(graph, path):
    (use,) = graph.uses_of(path)
    return use


def test_uses_of_one_input_share_its_number():
    case = models.llama()
    graph = jaxprune.trace(case.fn, case.params, *case.inputs)
    number = {u.path.removeprefix("blocks/"): u.input for u in graph.uses if u.is_product}
    assert number["q"] == number["k"] == number["v"]
    assert number["gate"] == number["up"]
    assert len(set(number.values())) == 5
    assert only(graph, "blocks/q").loops == (2,)


def test_an_input_that_is_computed_twice_is_one_input():
    def fn(p, x):
        return jnp.tanh(x).reshape(-1, 4) @ p["a"] + jnp.tanh(x).reshape(-1, 4) @ p["b"]

    graph = jaxprune.trace(fn, {"a": w(4, 2), "b": w(4, 2)}, X)
    assert only(graph, "a").input == only(graph, "b").input


def test_parts_of_a_fused_weight():
    graph = jaxprune.trace(
        lambda p, x: sum(x @ part for part in jnp.split(p["qkv"], 3, axis=1)),
        {"qkv": w(4, 6)},
        X,
    )
    parts = [use.free for use in graph.uses]
    assert parts == [(Factor(1, 1, 2, start),) for start in (0, 2, 4)]
    assert {use.contracted_axes for use in graph.uses} == {(0,)}
    assert {use.steps for use in graph.uses} == {("split",)}


def test_an_axis_half_batch_half_contracted_is_no_whole_axis():
    def fn(p, x):
        return jnp.einsum("tgi,gio->tgo", x.reshape(5, 2, 2), p["w"].reshape(2, 2, 3))

    use = only(jaxprune.trace(fn, {"w": w(4, 3)}, X), "w")
    assert (use.batch, use.contracted) == ((Factor(0, 2, 2),), (Factor(0, 1, 2),))
    assert (use.batch_axes, use.contracted_axes, use.free_axes) == ((), (), (1,))


def test_groups_of_a_convolution():
    case = models.cnn()
    graph = jaxprune.trace(case.fn, case.params, *case.inputs)
    groups = {use.path: use.groups for use in graph.uses}
    assert (groups["plain"], groups["grouped"], groups["depthwise"]) == (1, 2, 6)
    use = only(graph, "grouped")
    assert (use.contracted_axes, use.free_axes) == ((0, 1, 2), (3,))
    assert use.features == (Factor(2, 1, 2),)


def test_effective_weights():
    case = models.effective()
    graph = jaxprune.trace(case.fn, case.params, *case.inputs)
    found = {u.path: (u.zero_preserving, set(u.derived_from)) for u in graph.uses}
    assert found["v"] == (True, {"g"})
    assert found["frozen"] == (False, {"mask", "down", "up"})
    assert found["log"] == (False, set())
    assert found["pruned"] == (True, {"kept"})
    assert only(graph, "g").contracted == ()
    assert only(graph, "quantised").zero_preserving
    assert not only(graph, "down").from_data


def test_factors_of_a_low_rank_update_are_selected_on_request():
    case = models.effective()
    graph = jaxprune.trace(case.fn, case.params, *case.inputs)
    more = graph.where(of_parameters=True).chosen - graph.where().chosen
    assert more == {"down", "up"}


def test_a_weight_that_a_branch_or_a_loop_chooses_is_not_certain():
    case = models.branches()
    graph = jaxprune.trace(case.fn, case.params, *case.inputs)
    found = {use.path: (use.certain, use.loops) for use in graph.uses}
    assert found == {
        "yes": (True, ()),
        "no": (True, ()),
        "a": (False, (None,)),
        "b": (False, (None,)),
    }


def test_weights_that_are_closed_over_are_reported():
    hidden = np.ones((4, 3), np.float32)
    graph = jaxprune.trace(lambda p, x: x @ hidden * p["scale"], {"scale": w()}, X)
    (entry,) = graph.skipped
    assert entry == (
        "<constant 4 × 3>",
        "dot_general",
        entry.site,
        "an array that the function closes over is multiplied with data: if it is a weight, pass "
        "it in params",
    )


def test_masks_and_tables_that_are_closed_over_are_not():
    mask = np.tril(np.ones((5, 5), bool))
    graph = jaxprune.trace(
        lambda p, x: jnp.where(mask, x @ p["w"] @ x.T, -1e9) * np.ones((1, 5), np.float32),
        {"w": w(4, 4)},
        X,
    )
    assert graph.skipped == ()


@pytest.mark.parametrize(
    ("fn", "primitive", "reason"),
    [
        (lambda p, x: x @ jnp.sort(p["w"]), "dot_general", "lost at sort (0, 0): sort is not"),
        (lambda p, x: x @ jnp.cumsum(p["w"], 0), "dot_general", "cumsum is not followed"),
        (lambda p, x: x @ jnp.fft.fft(p["w"]).real, "dot_general", "fft is not followed"),
        (lambda p, x: jnp.linalg.solve(p["w"], x.T), None, "is not followed"),
        (lambda p, x: x, "", "no equation that reaches an output uses it with data"),
        (lambda p, x: x + jnp.sum(p["w"]), "reduce_sum", "it is summed up"),
        (
            lambda p, x: lax.conv_general_dilated(
                p["w"][None, None], x[None, None], (1, 1), "SAME"
            ),
            "conv_general_dilated",
            "it stands where conv_general_dilated has its input",
        ),
    ],
    ids=["sort", "cumsum", "fft", "solve", "unused", "sum", "image"],
)
def test_what_is_not_followed_is_reported_and_left_dense(fn, primitive, reason):
    graph = jaxprune.trace(fn, {"w": w(4, 4)}, X)
    entry = graph.skipped[0]
    assert entry.path == "w"
    assert primitive in (None, entry.primitive)
    assert reason in entry.reason
    assert not graph.where()("w", None)


def test_dead_equations_use_nothing():
    def fn(p, x):
        _ = x @ p["dead"]
        return jax.jit(lambda x: (x @ p["dead"], x @ p["live"]))(x)[1]

    graph = jaxprune.trace(fn, {"dead": w(4, 2), "live": w(4, 2)}, X)
    assert only(graph, "live").is_product
    assert len(graph.uses_of("dead")) == 1  # inside the call, its result is an output


def test_a_loop_that_moves_a_weight_in_every_turn_loses_it():
    def fn(p, x):
        def turn(state, _):
            x, w = state
            return (x @ w, jnp.roll(w, 1, axis=0)), None

        return lax.scan(turn, (x, p["w"]), None, length=30)[0][0]

    graph = jaxprune.trace(fn, {"w": w(4, 4)}, X)
    assert [e.path for e in graph.skipped] == ["w"]
    assert "a loop moves it in every turn" in graph.skipped[0].reason


def test_a_long_shift_register_becomes_data_to_its_end():
    def fn(p, x):
        def turn(state, x):
            return (x, *state[:-1]), state[-1] @ p["w"]

        start = tuple(jnp.zeros(4) for _ in range(12))
        return lax.scan(turn, start, x)[1]

    assert only(jaxprune.trace(fn, {"w": w(4, 2)}, X), "w").from_data


def test_nothing_to_trace_is_an_error():
    with pytest.raises(ValueError) as error:
        jaxprune.trace(lambda p, x: x, {"name": "net"}, X)
    assert str(error.value) == (
        "params holds no array. Pass the tree of parameters that fn takes first."
    )


def test_custom_rules_and_rematerialisation_are_read_through():
    @jax.custom_vjp
    def twice(w, x):
        return x @ (2 * w)

    twice.defvjp(lambda w, x: (twice(w, x), (w, x)), lambda r, g: (r[0], r[1]))
    graph = jaxprune.trace(
        lambda p, x: jax.checkpoint(lambda x: twice(p["w"], x))(x), {"w": w(4, 2)}, X
    )
    assert only(graph, "w").contracted_axes == (0,)
    assert only(graph, "w").steps == ("mul",)


def test_a_model_under_vmap():
    graph = jaxprune.trace(
        lambda p, x: jax.vmap(lambda x: jax.vmap(lambda w: x @ w)(p["w"]))(x), {"w": w(3, 4, 2)}, X
    )
    use = only(graph, "w")
    assert (use.contracted_axes, use.free_axes) == ((1,), (0, 2))


def test_the_table(capsys):
    params = weights(w=(4, 6), bias=(6,))
    fixed = np.ones((6, 6), np.float32)
    graph = jaxprune.trace(
        lambda p, x: (x @ p["w"] + p["bias"][None]) @ fixed, params, inputs(5, 4)
    )
    graph.table()
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.strip().startswith("w "))
    assert [cell.strip() for cell in row.split("│")][:5] == ["w", "4 × 6", "dot_general", "0", "1"]
    assert any("closes over" in line for line in lines)
    assert repr(graph) == "Graph(2 parameters, 2 uses, 1 skipped)"
