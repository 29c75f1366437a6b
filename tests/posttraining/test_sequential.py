"""Pruning block after block, against the same done by hand, and what can go wrong with it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import posttraining
from jaxprune.graph import Graph
from jaxprune.posttraining import _blocks
from tests.graph import stacks
from tests.graph.cases import inputs, weights

FREE, TWO_OF_FOUR = jaxprune.Unstructured(), jaxprune.NM(2, 4)
BATCHES = [inputs(5, 3, seed=seed) for seed in (1, 2)]
WANDA: Any = {"method": posttraining.wanda(), "sparsity": 0.5, "pattern": FREE}


def traced(stack: stacks.Stack) -> Graph:
    return jaxprune.trace(stack.fn, stack.params, *stack.inputs)


@pytest.fixture(scope="module")
def stack() -> stacks.Stack:
    return stacks.unrolled()


@pytest.fixture(scope="module")
def graph(stack: stacks.Stack) -> Graph:
    """One for all tests: its blocks are compiled once."""
    return traced(stack)


@pytest.fixture(scope="module")
def result(stack: stacks.Stack, graph: Graph) -> posttraining.Result:
    return posttraining.prune_blocks(
        graph, stack.params, BATCHES, posttraining.wanda(), sparsity=0.5, pattern=FREE
    )


Prune = Callable[[np.ndarray, np.ndarray], np.ndarray]


def wanda_by_hand(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Wanda's mask of half the inputs of each output, as published: a stable ascending sort."""
    scores = np.abs(weight) * np.sqrt((x**2).sum(0))[:, None]
    mask = np.ones(weight.shape, bool)
    first = np.argsort(scores, axis=0, kind="stable")[: len(weight) // 2]
    np.put_along_axis(mask, first, False, axis=0)
    return mask


def pruned_by_hand(params: Any, prune: Prune = wanda_by_hand) -> tuple[list[Any], list[Any]]:
    """The blocks' weights and masks, each pruned on what comes out of the pruned ones before."""
    done, masks = [], []
    x = np.concatenate([np.asarray(batch) @ params["first"] for batch in BATCHES])
    for block in jax.tree.map(np.asarray, params["blocks"]):
        inside = np.maximum(x @ block["up"], 0)  # of the dense block: both are pruned at once
        mask = {"up": prune(block["up"], x), "down": prune(block["down"], inside)}
        done.append({name: np.where(mask[name], leaf, 0) for name, leaf in block.items()})
        x = x + np.maximum(x @ done[-1]["up"], 0) @ done[-1]["down"]
        masks.append(mask)
    return done, masks


def check_equal(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_each_block_sees_the_output_of_the_pruned_ones(
    stack: stacks.Stack, result: posttraining.Result
) -> None:
    want, masks = pruned_by_hand(stack.params)
    check_equal(result.params["blocks"], want)
    check_equal(result.masks["blocks"], masks)
    check_equal(result.params["first"], stack.params["first"])
    assert not jax.tree.leaves([result.masks["first"], result.masks["last"]])
    # On the dense activations the masks would be others.
    x = np.concatenate([np.asarray(batch) @ stack.params["first"] for batch in BATCHES])
    for w in stack.params["blocks"][:2]:
        x = x + np.maximum(x @ w["up"], 0) @ w["down"]
    assert (wanda_by_hand(np.asarray(stack.params["blocks"][2]["up"]), x) != masks[2]["up"]).any()


def test_what_is_told_of_a_block(stack: stacks.Stack, result: posttraining.Result) -> None:
    assert [(block.number, block.of) for block in result.blocks] == [(0, 3), (1, 3), (2, 3)]
    up, down = result.blocks[1].weights
    assert (up.path, up.layer, down.path) == ("blocks/1/up", None, "blocks/1/down")
    assert up.sparsity == down.sparsity == 0.5
    assert up.damping is None
    check_equal(up.weight, result.params["blocks"][1]["up"])
    first = np.asarray(stack.params["blocks"][0]["up"])
    x = np.concatenate([np.asarray(batch) @ stack.params["first"] for batch in BATCHES])
    squares = (x**2).sum(0)[:, None]
    gone = (squares * np.where(result.masks["blocks"][0]["up"], 0, first) ** 2).sum()
    error = gone / (squares * first**2).sum()
    np.testing.assert_allclose(result.blocks[0].weights[0].error, error, rtol=1e-5)


def test_a_scan_is_pruned_like_a_loop(result: posttraining.Result) -> None:
    scanned = stacks.scanned()
    found = posttraining.prune_blocks(
        traced(scanned), scanned.params, BATCHES, posttraining.wanda(), sparsity=0.5, pattern=FREE
    )
    for name in ("up", "down"):
        for part in ("params", "masks"):
            layers = [block[name] for block in getattr(result, part)["blocks"]]
            check_equal(getattr(found, part)["blocks"][name], np.stack(layers))
    assert [(w.path, w.layer) for w in found.blocks[2].weights] == [
        ("blocks/up", 2),
        ("blocks/down", 2),
    ]


def on_host(leaf: Any) -> Any:
    return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf


def test_a_run_that_was_stopped_goes_on(
    stack: stacks.Stack,
    graph: Graph,
    result: posttraining.Result,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[posttraining.Block] = []
    gathered: list[Any] = []
    weights_of = _blocks.Blocks.weights

    def spy(self: Any, segment: Any) -> Any:
        gathered.append(segment)
        return weights_of(self, segment)

    monkeypatch.setattr(_blocks.Blocks, "weights", spy)

    def run(known: list[posttraining.Block]) -> posttraining.Result:
        return posttraining.prune_blocks(
            graph,
            stack.params,
            BATCHES,
            posttraining.wanda(),
            sparsity=0.5,
            pattern=FREE,
            known=lambda number: known[number] if number < len(known) else None,
            done=done.append,
        )

    stored = [jax.tree.map(on_host, block) for block in result.blocks]  # as from a file
    again = run(stored[:2])
    check_equal((again.params, again.masks), (result.params, result.masks))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(again.params))
    assert [block.number for block in done] == [2]
    assert len(gathered) == 1
    run(stored)
    assert len(gathered) == len(done) == 1


def attention(p: Any, x: jax.Array) -> jax.Array:
    """Blocks of two heads, whose output kernel is [heads, head_dim, width]."""
    for w in p["blocks"]:
        q = jnp.einsum("td,dhk->thk", x, w["query"])
        share = jax.nn.softmax(jnp.einsum("thk,shk->hts", q, q))
        x = x + jnp.einsum("hts,shk,hkd->td", share, q, w["out"])
    return x


def test_groups_run_along_all_inputs_of_a_weight() -> None:
    some = weights(query=(2, 4, 2, 2), out=(2, 2, 2, 4))
    params = {"blocks": [jax.tree.map(lambda leaf, i=i: leaf[i], some) for i in range(2)]}
    graph = jaxprune.trace(attention, params, inputs(5, 4))
    found = posttraining.prune_blocks(
        graph, params, [inputs(5, 4)], posttraining.wanda(), pattern=TWO_OF_FOUR
    )
    for block in found.masks["blocks"]:
        query, out = np.asarray(block["query"]), np.asarray(block["out"])
        assert (query.sum(0) == 2).all()
        assert (out.reshape(4, 4).sum(0) == 2).all()  # through heads and head_dim
    outs = np.stack([block["out"] for block in found.masks["blocks"]])
    assert (outs.sum(2) != 1).any()  # and not 1 of 2 in every head


def test_where_may_choose_others_in_each_block(stack: stacks.Stack, graph: Graph) -> None:
    chosen = ("blocks/0/up", "blocks/2/down")
    found = posttraining.prune_blocks(
        graph,
        stack.params,
        BATCHES,
        posttraining.wanda(),
        sparsity=0.5,
        pattern=FREE,
        where=lambda path, leaf: path in chosen,
    )
    assert [[w.path for w in block.weights] for block in found.blocks] == [[p] for p in chosen]
    want = wanda_by_hand(
        np.asarray(stack.params["blocks"][0]["up"]),
        np.concatenate([np.asarray(batch) @ stack.params["first"] for batch in BATCHES]),
    )
    np.testing.assert_array_equal(found.masks["blocks"][0]["up"], want)
    assert not hasattr(found.masks["blocks"][0]["down"], "dtype")
    check_equal(found.params["blocks"][1], stack.params["blocks"][1])


def test_where_reaches_the_head(stack: stacks.Stack, graph: Graph) -> None:
    found = posttraining.prune_blocks(
        graph,
        stack.params,
        BATCHES,
        posttraining.magnitude(),
        sparsity=0.5,
        pattern={"^last$": FREE},
        where="^last$",
    )
    assert (np.asarray(found.params["last"]) == 0).sum() == 4
    assert found.blocks[0].of == 1


def test_a_sparsity_for_each_block(stack: stacks.Stack, graph: Graph) -> None:
    shares = [0.25, 0.5, 0.75]
    found = posttraining.prune_blocks(
        graph,
        stack.params,
        BATCHES,
        posttraining.magnitude(select=posttraining.per_output),
        sparsity=lambda number: shares[number],
        pattern=FREE,
    )
    assert [[w.sparsity for w in block.weights] for block in found.blocks] == [
        [share] * 2 for share in shares
    ]


def test_gradients_of_each_weight_reach_the_method(stack: stacks.Stack, graph: Graph) -> None:
    gradients = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), stack.params)
    chosen = np.random.default_rng(0).permuted(np.arange(4)[:, None].repeat(8, 1), axis=0) < 2
    gradients["blocks"][1]["up"] = jnp.where(chosen, 1e6, 0.0)
    found = posttraining.prune_blocks(
        graph,
        stack.params,
        BATCHES,
        posttraining.gblm(),
        sparsity=0.5,
        pattern=FREE,
        gradients=gradients,
    )
    np.testing.assert_array_equal(found.masks["blocks"][1]["up"], chosen)
    assert (np.asarray(found.masks["blocks"][2]["up"]) != chosen).any()


def with_dead_inputs(params: Any) -> Any:
    """The first block's inner features 2 to 6 are always zero."""
    first, *rest = params["blocks"]
    return params | {"blocks": [first | {"up": first["up"].at[:, 2:7].set(0.0)}, *rest]}


def check_finite(result: posttraining.Result) -> None:
    for block in result.blocks:
        assert all(np.isfinite(w.weight).all() and 0 <= w.error < 1 for w in block.weights)


def test_inputs_that_are_always_zero(stack: stacks.Stack, graph: Graph) -> None:
    params = with_dead_inputs(stack.params)
    found = posttraining.prune_blocks(graph, params, BATCHES, **WANDA)
    check_finite(found)
    assert (np.asarray(found.masks["blocks"][0]["down"]).sum(0) == 4).all()
    # Nothing but zeros gives no outputs to divide the error by.
    silent = [jnp.zeros_like(batch) for batch in BATCHES]
    found = posttraining.prune_blocks(graph, params, silent, **WANDA)
    assert [w.error for block in found.blocks for w in block.weights] == [0.0] * 6


@pytest.mark.slow  # SparseGPT is compiled for two shapes
def test_a_solver_drops_inputs_that_are_always_zero(stack: stacks.Stack, graph: Graph) -> None:
    params, method = with_dead_inputs(stack.params), posttraining.sparsegpt()
    found = posttraining.prune_blocks(graph, params, BATCHES, **(WANDA | {"method": method}))
    check_finite(found)
    assert (np.asarray(found.params["blocks"][0]["down"])[2:7] == 0).all()
    assert all(w.damping is not None for block in found.blocks for w in block.weights)


def test_outliers_of_each_block_of_the_dense_model(stack: stacks.Stack, graph: Graph) -> None:
    found = posttraining.outlier_ratios(graph, stack.params, BATCHES, multiple=2.0)
    x = np.concatenate([np.asarray(batch) @ stack.params["first"] for batch in BATCHES])
    want = []
    for w in jax.tree.map(np.asarray, stack.params["blocks"]):
        inside = np.maximum(x @ w["up"], 0)
        scores = np.concatenate(
            [
                (np.abs(weight) * np.sqrt((data**2).sum(0))[:, None]).ravel()
                for weight, data in ((w["up"], x), (w["down"], inside))
            ]
        )
        want.append((scores > 2 * scores.mean()).mean())
        x = x + inside @ w["down"]
    assert len(set(want)) > 1
    np.testing.assert_allclose(found, want, rtol=1e-6)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no batch": (
        {"batches": []},
        "batches is empty. Give at least one batch of the model's inputs.",
    ),
    "another shape": (
        {"batches": [BATCHES[0], BATCHES[1][:4]]},
        "batches: batch 1 has inputs float32[4, 3], and the graph was traced with float32[5, 3]. "
        "Trace with the shapes of the batches, all alike.",
    ),
    "a batch instead of batches": (
        {"batches": BATCHES[0]},
        "batches: batch 0 has inputs float32[3], and the graph was traced with float32[5, 3]. "
        "Trace with the shapes of the batches, all alike.",
    ),
    "NaN": (
        {"batches": [BATCHES[0], BATCHES[1].at[1, 1].set(jnp.nan)]},
        "the input of 'blocks/0/up' has NaN or infinite values. Look at the calibration data, and "
        "at the weights of what comes before it.",
    ),
    "no sparsity": (
        {"sparsity": None},
        "pattern=Unstructured() of 'blocks/0/up' has no sparsity of its own: pass sparsity=.",
    ),
    "sparsity 1.5": (
        {"sparsity": lambda number: 1.5},
        "sparsity must be a finite number in [0, 1), got 1.5. A sparsity is the share of zeros: "
        "0.9 prunes 90% of the weights.",
    ),
    "no gradients": (
        {"method": posttraining.gblm()},
        "the method reads gradients of the loss: pass gradients=, as jaxprune.scores.gradient_norm "
        "gives them for the dense model.",
    ),
    "gradients of others": (
        {"method": posttraining.gblm(), "gradients": {"last": jnp.ones((4, 2))}},
        "gradients has nothing for 'blocks/0/up', which is to be pruned. Give scores.gradient_norm "
        "a where= that selects it, or leave it out with where=.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_pruned(case: str, stack: stacks.Stack, graph: Graph) -> None:
    changed, text = WRONG[case]
    with pytest.raises(ValueError) as caught:
        posttraining.prune_blocks(graph, stack.params, **({"batches": BATCHES} | WANDA | changed))
    assert str(caught.value) == text


def test_nan_in_a_weight(graph: Graph) -> None:
    params = stacks.layers()
    params["blocks"][1]["down"] = params["blocks"][1]["down"].at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError) as caught:
        posttraining.prune_blocks(graph, params, BATCHES, **WANDA)
    assert str(caught.value) == (
        "the error of 'blocks/1/down' is nan: the weight, or what Wanda makes of it, has NaN or "
        "infinite values. Look at the weight; a solver may need more damping."
    )


def test_nan_in_front_of_a_layer_of_a_stack() -> None:
    scanned = stacks.scanned()
    params = scanned.params | {"first": scanned.params["first"].at[0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match=r"^the input of 'blocks/up', layer 0, has NaN"):
        posttraining.prune_blocks(traced(scanned), params, BATCHES, **WANDA)


@pytest.mark.parametrize(("where", "what"), [(None, "repeated blocks"), ("scale", "where=")])
def test_nothing_to_prune(where: str | None, what: str) -> None:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sin(x * p["scale"])

    params = weights(scale=())
    with pytest.raises(ValueError) as caught:
        posttraining.prune_blocks(
            jaxprune.trace(fn, params, inputs(3, 4)), params, [inputs(3, 4)], **WANDA, where=where
        )
    assert str(caught.value) == (
        f"there is nothing to prune: the graph found no weights with input features in {what}. "
        "Look at graph.table(), and name the weights with where=."
    )
