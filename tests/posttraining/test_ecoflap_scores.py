"""ECoFLaP's run: zeroth-order scores of blocks, and what is pruned by them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import posttraining
from jaxprune.graph import Graph
from tests.graph import stacks
from tests.graph.cases import inputs

BATCHES = [inputs(5, 3, seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def stack() -> stacks.Stack:
    """Blocks of which the loss depends less and less: the head reads what all of them add."""
    return stacks.unrolled()


@pytest.fixture(scope="module")
def graph(stack: stacks.Stack) -> Graph:
    return jaxprune.trace(stack.fn, stack.params, *stack.inputs)


traced: list[jax.Array] = []


def loss(params: Any, x: jax.Array) -> jax.Array:
    """The mean square of the outputs; counts how often it is traced."""
    traced.append(x)
    return jnp.mean(stacks.unrolled(params=params).fn(params, x) ** 2)


def of_blocks(params: Any, batches: list[jax.Array]) -> np.ndarray:
    """The size of the gradient of each weight, summed over the block's weights and the batches."""
    slope = jax.jit(jax.grad(loss))
    slopes = [jax.tree.map(np.asarray, slope(params, x)["blocks"]) for x in batches]
    sizes = [
        [float(np.linalg.norm(g)) for g in jax.tree.leaves(block)] for s in slopes for block in s
    ]
    return np.asarray(sizes).sum(1).reshape(len(batches), -1).sum(0)


def test_scores_have_the_size_of_the_gradients(stack: stacks.Stack, graph: Graph) -> None:
    before, some = len(traced), BATCHES * 20
    seen: list[tuple[int, int]] = []
    found = posttraining.ecoflap_scores(
        graph, stack.params, some, loss, progress=lambda done, of: seen.append((done, of))
    )
    assert len(traced) <= before + 1  # once for all weights, or before this test
    assert seen == [(i, 6) for i in range(1, 7)]
    # |z · g| has mean √(2/π) |g|, and a standard deviation of 0.76 of that.
    want = np.sqrt(2 / np.pi) * of_blocks(stack.params, BATCHES) * 20
    np.testing.assert_allclose(found.scores, want, rtol=0.25)
    np.testing.assert_array_equal(found.sizes, [64, 64, 64])


def test_averages_and_seeds(stack: stacks.Stack, graph: Graph) -> None:
    found, averaged, other = (
        posttraining.ecoflap_scores(graph, stack.params, BATCHES, loss, **more)
        for more in ({}, {"average": True}, {"seed": 1})
    )
    np.testing.assert_allclose(averaged.scores, found.scores / 64)
    assert (other.scores != found.scores).all()


def test_a_scan_has_the_scores_of_a_loop(stack: stacks.Stack, graph: Graph) -> None:
    scanned = stacks.scanned()

    def of_scan(params: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(scanned.fn(params, x) ** 2)

    stacked = jaxprune.trace(scanned.fn, scanned.params, *scanned.inputs)
    found = posttraining.ecoflap_scores(stacked, scanned.params, BATCHES, of_scan)
    want = posttraining.ecoflap_scores(graph, stack.params, BATCHES, loss)
    np.testing.assert_allclose(found.scores, want.scores, rtol=1e-2)
    np.testing.assert_array_equal(found.sizes, want.sizes)


def test_a_run_that_was_stopped_goes_on(stack: stacks.Stack, graph: Graph) -> None:
    told: list[float] = []
    given = graph, stack.params, BATCHES, loss
    whole = posttraining.ecoflap_scores(*given, done=told.append)
    assert told == whole.scores.tolist()
    weights: list[int] = []
    again = posttraining.ecoflap_scores(
        *given, known=told[:2], done=told.append, progress=lambda done, of: weights.append(done)
    )
    np.testing.assert_array_equal(again.scores, whole.scores)
    np.testing.assert_array_equal(again.sizes, whole.sizes)
    assert (weights, told[3:]) == ([5, 6], told[2:3])


def test_weights_count_by_their_size_with_a_power(stack: stacks.Stack, graph: Graph) -> None:
    chosen = r"^blocks/0/up$"
    plain, squared = (
        posttraining.ecoflap_scores(graph, stack.params, BATCHES, loss, power=p, where=chosen)
        for p in (0, 2)
    )
    weight = np.asarray(stack.params["blocks"][0]["up"])
    np.testing.assert_allclose(squared.scores, plain.scores**2 * (weight**2).sum(), rtol=1e-5)
    np.testing.assert_array_equal(plain.sizes, [weight.size])


@pytest.mark.slow  # compiles Wanda; the page of docs has a run, too
def test_the_run_prunes_every_block_by_its_score(stack: stacks.Stack, graph: Graph) -> None:
    found = posttraining.prune_ecoflap(
        graph, stack.params, BATCHES, loss, sparsity=0.5, max_sparsity=0.75, where="/up$"
    )
    scores = posttraining.ecoflap_scores(graph, stack.params, BATCHES, loss, where="/up$")
    shares = posttraining.ecoflap_sparsities(*scores, 0.5, max_sparsity=0.75)
    assert len(set(shares)) > 1
    want = posttraining.prune_blocks(
        graph, stack.params, BATCHES, posttraining.wanda(),
        sparsity=lambda i: shares[i], pattern=jaxprune.Unstructured(), where="/up$",
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, found.params, want.params)
    order = np.argsort(-scores.scores)
    kept = [sum(w.mask.sum() for w in found.blocks[i].weights) for i in order]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1]


@pytest.mark.slow  # compiles magnitude for two shapes, and another loss
def test_the_loss_may_read_other_batches(stack: stacks.Stack, graph: Graph) -> None:
    def labelled(params: Any, batch: Any) -> jax.Array:
        return jnp.mean((stack.fn(params, batch["x"]) - batch["y"]) ** 2)

    pairs = [{"x": x, "y": jnp.ones((5, 2))} for x in BATCHES]
    found = posttraining.prune_ecoflap(
        graph, stack.params, BATCHES, labelled, sparsity=0.5, loss_batches=pairs,
        method=posttraining.magnitude(), seed=3,
    )  # fmt: skip
    zeros = [int((~w.mask).sum()) for block in found.blocks for w in block.weights]
    assert sum(zeros) == pytest.approx(96, abs=3)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no batch": ({"batches": []}, "batches is empty. Give at least one batch of loss_fn."),
    "no scalar": (
        {"loss_fn": lambda p, x: x @ p["first"]},
        "loss_fn must return one number, got shape (5, 4). Take the mean over the batch.",
    ),
    "not finite": (
        {"loss_fn": lambda p, x: jnp.log(-jnp.abs(jnp.mean(p["first"])))},
        "loss_fn is not finite where 'blocks/0/up' was moved by eps=0.001. Look at the loss, the "
        "batches and the weights.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_scored(case: str, stack: stacks.Stack, graph: Graph) -> None:
    changed, text = WRONG[case]
    with pytest.raises(ValueError) as caught:
        posttraining.ecoflap_scores(
            graph, stack.params, **({"batches": BATCHES, "loss_fn": loss} | changed)
        )
    assert str(caught.value) == text
