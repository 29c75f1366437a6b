"""D-Pruner: the two importances on a model of blocks, and what is pruned by them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import posttraining, scores
from jaxprune.graph import Graph
from tests.graph import stacks
from tests.graph.cases import inputs

FREE = jaxprune.Unstructured()
DOMAIN = [inputs(5, 3, seed=seed) for seed in (1, 2)]
GENERAL = [inputs(5, 3, seed=seed) for seed in (3, 4)]


@pytest.fixture(scope="module")
def stack() -> stacks.Stack:
    return stacks.unrolled()


@pytest.fixture(scope="module")
def graph(stack: stacks.Stack) -> Graph:
    return jaxprune.trace(stack.fn, stack.params, *stack.inputs)


def loss(params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean(stacks.unrolled(params=params).fn(params, x) ** 2)


@pytest.fixture(scope="module")
def general(stack: stacks.Stack, graph: Graph) -> Any:
    return posttraining.general_importance(graph, stack.params, GENERAL)


def test_general_importance_is_the_error_of_each_layer(stack: stacks.Stack, general: Any) -> None:
    x = np.concatenate([np.asarray(batch) @ stack.params["first"] for batch in GENERAL])
    for block, found in zip(stack.params["blocks"], general["blocks"], strict=True):
        inside = np.maximum(x @ block["up"], 0)
        for name, data in (("up", x), ("down", inside)):
            gram = jnp.asarray(2.0 / 10 * data.T @ data)  # 5 rows in each of 2 batches
            want = scores.obs(block[name], gram)
            np.testing.assert_allclose(found[name], want, rtol=2e-3)
        x = x + inside @ block["down"]  # dense: nothing is pruned on the way
    assert not jax.tree.leaves([general["first"], general["last"]])


def test_a_scan_has_the_importance_of_a_loop(general: Any) -> None:
    scanned = stacks.scanned()
    traced = jaxprune.trace(scanned.fn, scanned.params, *scanned.inputs)
    found = posttraining.general_importance(traced, scanned.params, GENERAL)
    for name in ("up", "down"):
        want = np.stack([block[name] for block in general["blocks"]])
        np.testing.assert_allclose(found["blocks"][name], want, rtol=1e-4)


def importance(graph: Graph, stack: stacks.Stack, **more: Any) -> Any:
    return posttraining.dpruner_scores(graph, stack.params, DOMAIN, GENERAL, loss, **more)


def in_blocks(path: str, leaf: Any) -> bool:
    del leaf
    return path.startswith("blocks")


def test_the_domain_decides_and_the_general_part_adds(
    stack: stacks.Stack, graph: Graph, general: Any
) -> None:
    found = importance(graph, stack, rate=10.0)
    kinds: dict[str, Any] = {"where": in_blocks, "rate": 10.0}
    want = scores.dual_importance(loss, stack.params, DOMAIN, general=general, **kinds)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, want)
    plain = scores.dual_importance(loss, stack.params, DOMAIN, where=in_blocks)
    assert (found["blocks"][0]["up"] > plain["blocks"][0]["up"]).any()
    # Without a penalty it is the domain's importance; at the published rate it hardly differs.
    for more in ({"penalty": 0.0}, {}):
        same = importance(graph, stack, **more)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), same, plain)


@pytest.mark.slow  # compiles the selection; the page of docs has a run, too
def test_the_least_of_each_matrix_go(stack: stacks.Stack, graph: Graph) -> None:
    found = posttraining.prune_dpruner(
        graph, stack.params, DOMAIN, GENERAL, loss, sparsity=0.5, rate=10.0, where="/up$"
    )
    ranks = importance(graph, stack, rate=10.0)["blocks"]
    for mask, score, before, after in zip(
        found.masks["blocks"], ranks, stack.params["blocks"], found.params["blocks"], strict=True
    ):
        kept = np.asarray(mask["up"])
        assert kept.sum() == 16
        assert score["up"][kept].min() >= score["up"][~kept].max()
        np.testing.assert_array_equal(after["up"], np.where(kept, before["up"], 0))
        np.testing.assert_array_equal(after["down"], before["down"])
    np.testing.assert_array_equal(found.params["first"], stack.params["first"])


@pytest.mark.slow  # gradients of another batch shape, and masks of another kind
def test_groups_and_the_other_general_importance(stack: stacks.Stack, graph: Graph) -> None:
    two_of_four = posttraining.prune_dpruner(
        graph, stack.params, DOMAIN, GENERAL, loss, pattern=jaxprune.NM(2, 4), fisher=True
    )
    for mask in two_of_four.masks["blocks"]:
        assert (np.asarray(mask["down"]).reshape(2, 4, 4).sum(1) == 2).all()
    fisher = scores.dual_importance(loss, stack.params, GENERAL, where=in_blocks)
    found = importance(graph, stack, fisher=True, rate=10.0, exact=True)
    want = scores.dual_importance(
        loss, stack.params, DOMAIN, general=fisher, rate=10.0, exact=True, where=in_blocks
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, want)


def test_one_batch_is_not_batches(stack: stacks.Stack, graph: Graph) -> None:
    with pytest.raises(TypeError) as caught:
        posttraining.prune_dpruner(graph, stack.params, DOMAIN[0], GENERAL, loss, sparsity=0.5)
    assert str(caught.value) == (
        "scores.dual_importance: batches must be an iterable of batches, got one ArrayImpl. Pass "
        "[batch] for a single one."
    )


def test_no_general_text(stack: stacks.Stack, graph: Graph) -> None:
    with pytest.raises(ValueError) as caught:
        posttraining.general_importance(graph, stack.params, [])
    assert str(caught.value) == "batches is empty. Give at least one batch of the model's inputs."


def test_importance_of_another_shape() -> None:
    weight, inputs_ = jnp.ones((2, 3)), posttraining.Inputs(jnp.float32(1), jnp.float32(1))
    with pytest.raises(ValueError) as caught:
        posttraining.dpruner()(weight, inputs_, posttraining.Target(0.5))
    assert str(caught.value) == (
        "DPruner needs inputs.gradient, got None. It is the dual importance, as dpruner_scores "
        "gives it."
    )
