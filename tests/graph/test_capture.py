"""Statistics of inputs, against the inputs themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune
from jaxprune._core import paths
from jaxprune.graph import _jax, statistics
from jaxprune.graph.capture import taken
from jaxprune.graph.plan import plan_of
from tests import quick
from tests.graph import frameworks, models, oracle
from tests.graph.cases import inputs, weights

EVERYTHING = {
    "squares": statistics.sum_of_squares,
    "absolute": statistics.absolute_mean,
    "mean": statistics.mean,
    "variance": statistics.variance,
    "maximum": statistics.maximum,
    "gram": statistics.gram,
    "count": statistics.count,
}


def traced(case):
    return jaxprune.trace(case.fn, case.params, *case.inputs)


def arrays(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]


def seen(graph, params, *batches):
    """For each use, what its equation was given and gave, in the order of the turns."""
    uses = {use.site: use for use in graph.uses if use.is_product}

    @quick.jit
    def run(leaves):
        found = {number: [] for number in range(len(uses))}

        def note(site, eqn, operands):
            if site in uses:
                other = operands[1 - uses[site].operand]
                number = list(uses).index(site)
                found[number].append((other, _jax.bind(eqn, operands)[0]))
            return operands

        oracle.run(graph.program.body, leaves, note)
        return found

    runs = [run([*arrays(params), *batch]) for batch in batches]
    return [{site: found[n] for n, site in enumerate(uses)} for found in runs]


def expected(rows, counted):
    """The statistics of rows [tokens, features], in numpy's float64."""
    rows = np.asarray(rows, np.float64)[np.asarray(counted)]
    return {
        "squares": (rows**2).sum(0),
        "absolute": abs(rows).mean(0),
        "mean": rows.mean(0),
        "variance": rows.var(0),
        "maximum": abs(rows).max(0),
        "gram": rows.T @ rows,
        "count": len(rows),
    }


def test_all_statistics_of_a_scanned_model_over_batches_with_a_mask():
    case = models.llama()
    graph = traced(case)
    batches = [case.inputs[0], case.inputs[0][:, ::-1] + 0]
    capture = graph.capture(EVERYTHING, mask=lambda tokens: tokens != 5)
    result = capture(case.params, batches)
    assert set(result) == graph.where().chosen
    assert capture.skipped == ()
    assert len(capture.plan.probes) == 5  # of 8 weights: some have one input
    runs = seen(graph, case.params, *([tokens] for tokens in batches))
    counted = np.concatenate([np.asarray(tokens != 5).reshape(-1) for tokens in batches])
    for path in graph.where().chosen:
        site = next(use.site for use in graph.uses_of(path) if use.is_product)
        layers = [
            np.concatenate([np.asarray(x).reshape(-1, x.shape[-1]) for x, _ in turns])
            for turns in zip(*(run[site] for run in runs), strict=True)
        ]
        each = [expected(rows, counted) for rows in layers]
        for name, got in result[path].items():
            want = [one[name] for one in each]
            want = want if path.startswith("blocks") else want[0]
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5, err_msg=f"{path} {name}")


CASES = [
    *(lambda case=case: case for case in models.ALL if case.name in ("cnn", "experts", "relaid")),
    *(frameworks.vit, frameworks.lstm),
]


@pytest.mark.parametrize("make", CASES, ids=["cnn", "experts", "relaid", "vit", "lstm"])
def test_gram_and_matrix_give_the_energy_of_the_outputs(make):
    """``Σ y² = tr(Wᵀ G W)``: features, batch and groups stand in the same order in both."""
    case = make()
    graph = traced(case)
    capture = graph.capture(statistics.gram)
    result = capture(case.params, [case.inputs])
    leaves = paths.flatten(case.params)
    skipped = {entry.path for entry in capture.skipped}
    assert skipped == {"relaid": {"one", "two", "sliced", "flipped"}}.get(case.name, set())
    experts = {use.path for use in graph.uses if use.one_hot}  # the sum runs over them, too
    energy = {}
    for path in result.keys() - experts:
        matrix, gram = graph.matrix(path, leaves[path]), result[path]
        site = tuple(u.site for u in graph.uses_of(path) if u.is_product)
        total = jnp.einsum("...io,...ij,...jo->", matrix, gram, matrix)
        energy[site] = energy.get(site, 0.0) + float(total)
    (outputs,) = seen(graph, case.params, case.inputs)
    for sites, got in energy.items():
        want = sum(float(jnp.sum(jnp.square(y))) for site in set(sites) for _, y in outputs[site])
        np.testing.assert_allclose(got, want, rtol=1e-4)


def outcome(graph, case, chosen):
    """The function's outputs beside the statistics."""
    plan = plan_of(graph.program, chosen)

    def run(leaves, args):
        return taken(graph.program, plan, EVERYTHING, None, case.inputs, leaves, args)[0]

    return run, [arrays(case.params), list(case.inputs)]


@pytest.mark.parametrize("make", [models.llama, models.branches], ids=["scan", "branches"])
def test_outputs_are_those_of_the_model_bit_for_bit(make):
    case = make()
    run, args = outcome(traced(case), case, lambda path: True)
    got = jax.jit(run)(*args)
    want = jax.jit(case.fn)(case.params, *case.inputs)
    for a, b in zip(got, jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_branch_that_is_not_taken_has_seen_nothing():
    case = models.branches()
    graph = traced(case)
    capture = graph.capture({"count": statistics.count, "max": statistics.maximum})
    signs = [jnp.ones((5, 4)), -jnp.ones((5, 4)), -jnp.ones((5, 4))]
    result = capture(case.params, signs)
    assert (int(result["yes"]["count"]), int(result["no"]["count"])) == (5, 10)
    result = capture(case.params, signs[1:2])
    assert result["yes"]["max"].tolist() == [0.0] * 4
    assert {entry.path: entry.reason for entry in capture.skipped} == dict.fromkeys(
        "ab", "a loop or a branch chooses among several weights"
    )


def test_a_weight_in_a_while_loop_counts_every_turn():
    def fn(p, x):
        start = (0, x)
        return lax.while_loop(
            lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.tanh(s[1] @ p["w"])), start
        )

    graph = jaxprune.trace(fn, weights(w=(4, 4)), inputs(5, 4))
    assert int(graph.capture(statistics.count)(weights(w=(4, 4)), [inputs(5, 4)])["w"]) == 15


def test_experts_count_their_own_tokens():
    def fn(p, x):
        return lax.ragged_dot(x, p["w"], jnp.array([2, 0, 3]))

    graph = jaxprune.trace(fn, weights(w=(3, 4, 2)), inputs(5, 4))
    result = graph.capture(EVERYTHING)(weights(w=(3, 4, 2)), [inputs(5, 4)])["w"]
    assert result["count"].tolist() == [2, 0, 3]
    want = expected(inputs(5, 4), [False, False, True, True, True])
    for name, got in result.items():
        np.testing.assert_allclose(got[2], want[name], rtol=1e-5, atol=1e-6)
    assert not np.asarray(result["mean"][1]).any()


def test_experts_of_a_one_hot_vector_see_their_own_tokens():
    def fn(p, x):
        return jnp.einsum("te,td,edf->tf", jax.nn.one_hot((x[:, 0] > 0).astype(int), 2), x, p["w"])

    params, x = weights(w=(2, 4, 2)), inputs(5, 4)
    result = jaxprune.trace(fn, params, x).capture(EVERYTHING)(params, [x])["w"]
    for expert in (0, 1):
        want = expected(x, (np.asarray(x[:, 0]) > 0) == bool(expert))
        for name, got in result.items():
            np.testing.assert_allclose(got[expert], want[name], rtol=1e-5, atol=1e-6)


def test_batches_may_have_other_shapes_and_are_shown():
    def fn(p, x, *, double=True):
        return (x @ p["w"]) * (2.0 if double else 1.0)

    params = weights(w=(4, 2))
    graph = jaxprune.trace(fn, params, jax.ShapeDtypeStruct((5, 4), jnp.float32))
    shown = []

    def progress(batches):
        for batch in batches:
            shown.append(batch.shape)
            yield batch

    capture = graph.capture(statistics.count, progress=progress)
    result = capture(params, (inputs(n, 4) for n in (5, 5, 3)))
    assert int(result["w"]) == 13
    assert shown == [(5, 4), (5, 4), (3, 4)]


def test_low_precision_is_accumulated_in_float32():
    x = jnp.full((2, 4096, 1), 0.1, jnp.bfloat16)
    params = {"w": jnp.ones((1, 1), jnp.bfloat16)}
    graph = jaxprune.trace(lambda p, x: x @ p["w"], params, x)
    result = graph.capture({"gram": statistics.gram, "sum": statistics.sum_of_squares})(params, [x])
    want = 8192 * float(x[0, 0, 0]) ** 2
    for got in result["w"].values():
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(np.asarray(got).ravel()[0], want, rtol=1e-5)


def test_custom_rules_are_kept_where_nothing_is_captured():
    @jax.custom_jvp
    def safe_sqrt(x):
        return jnp.sqrt(x)

    @safe_sqrt.defjvp
    def _(primals, tangents):
        (x,), (t,) = primals, tangents
        return safe_sqrt(x), jnp.where(x > 0, t * 0.5 / jnp.sqrt(jnp.maximum(x, 1e-9)), 0.0)

    def fn(p, x):
        return jnp.sum(safe_sqrt(jax.nn.relu(x @ p["w"])))

    params, x = {"w": jnp.zeros((2, 1))}, jnp.ones((1, 2))
    graph = jaxprune.trace(fn, params, x)
    plan = plan_of(graph.program, lambda path: True)

    def loss(w):
        outputs, _ = taken(graph.program, plan, statistics.gram, None, (x,), [w], [x])
        return outputs[0]

    np.testing.assert_array_equal(jax.grad(loss)(params["w"]), jnp.zeros((2, 1)))


def message(function, *args, error=ValueError, **kwargs):
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    return str(caught.value)


@pytest.fixture
def linear():
    params = weights(w=(4, 2))
    return jaxprune.trace(lambda p, x: x @ p["w"], params, inputs(5, 4)), params


def test_no_batches_is_an_error(linear):
    graph, params = linear
    assert message(graph.capture(statistics.gram), params, []) == (
        "batches is empty. Give at least one batch of the function's inputs."
    )


def test_activations_that_are_not_finite_are_named(linear):
    graph, params = linear
    x = inputs(5, 4).at[0, 0].set(jnp.nan)
    assert message(graph.capture(statistics.count), params, []).startswith("batches")
    assert message(graph.capture(statistics.gram), params, [x]) == (
        "the input of w has NaN or infinite values. Look at the data and the parameters of what "
        "comes before the first of them."
    )
    clean = graph.capture(statistics.gram, mask=lambda x: ~jnp.isnan(x[:, 0]))(params, [x])
    np.testing.assert_allclose(clean["w"], x[1:].T @ x[1:], rtol=1e-5)


def test_large_statistics_are_refused(linear):
    graph, params = linear
    assert message(graph.capture(statistics.gram, max_bytes=60), params, [inputs(5, 4)]) == (
        "the statistics take 64 bytes, more than max_bytes=60; the largest are those of w. "
        "Capture fewer weights at a time with where=, or raise max_bytes."
    )


def test_something_else_than_statistics_is_an_error(linear):
    graph, _ = linear
    assert message(graph.capture, {"gram": "gram"}, error=TypeError) == (
        "stats must be a Statistic, or a container of them, such as graph.statistics.gram; "
        "got 'gram'."
    )


def test_other_parameters_are_an_error(linear):
    graph, params = linear
    assert message(graph.capture(statistics.gram), params | {"b": params["w"]}, [inputs(5, 4)]) == (
        "params are not those that were traced: without none, with b instead. "
        "Pass the same tree to trace and to capture."
    )


def test_a_mask_of_no_input_is_an_error(linear):
    graph, params = linear
    capture = graph.capture(statistics.gram, mask=lambda x: jnp.ones(3, bool))
    assert message(capture, params, [inputs(5, 4)]) == (
        "mask has shape (3,), which is no beginning of an input's shape: [(5, 4)]. "
        "Give one boolean for each token, such as tokens != padding."
    )


def test_a_mask_that_routing_loses_is_an_error():
    case = models.experts()
    graph = traced(case)

    def only(name):
        return lambda path, leaf: path == name

    def mask(x):
        return x[:, 0] > 0

    capture = graph.capture(statistics.count, mask=mask, where=only("batched"))
    counts = capture(case.params, [case.inputs])["batched"]
    assert int(counts.sum()) == 2 * int(mask(*case.inputs).sum())  # each token has two experts
    capture = graph.capture(statistics.count, mask=mask, where=only("ragged"))
    site = graph.uses_of("ragged")[0].site
    assert message(capture, case.params, [case.inputs]) == (
        f"mask of shape (7,) cannot be followed to the input of 'ragged' (ragged_dot_general "
        f"{site}): its batch and time are lost there, by routing or inside a loop. Capture without "
        "mask, or leave this weight out with where=."
    )


def unfollowed(p, x):
    x = x @ p["left"] + (2.0 * x) @ p["left"].T
    x = (x[:, :2] @ p["rows"][:2]) + (x[:, 2:] @ p["rows"][2:])
    x = lax.fori_loop(0, 2, lambda i, x: x @ p["loop"][i], x)
    x = x @ p["turned"][::-1]
    return x @ p["fused"][:, :2] + jnp.tanh(x) @ p["fused"][:, 2:]


def test_what_has_no_statistics_is_said():
    params = weights(left=(4, 4), rows=(4, 4), loop=(2, 4, 4), fused=(4, 4), turned=(4, 4))
    graph = jaxprune.trace(unfollowed, params, inputs(5, 4))
    capture = graph.capture(statistics.gram)
    assert capture.paths == ()
    assert {entry.path: entry.reason for entry in capture.skipped} == {
        "left": "its uses have different input features",
        "rows": "a part of its input features is used",
        "turned": "its input features stand in reverse",
        "loop": "which layer is used is known only when the program runs",
        "fused": "parts of its outputs have inputs of their own",
    }
