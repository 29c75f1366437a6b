"""Padded tokens: they are in no statistic of a block, and nowhere do they change what is pruned."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import models, posttraining
from jaxprune.graph import Graph
from jaxprune.posttraining._blocks import Blocks
from tests.graph import stacks
from tests.graph.cases import inputs

FREE = jaxprune.Unstructured()
PADDING = 1e4
"""What stands in a padded row: one of them would decide every statistic."""


def embedded(stack: stacks.Stack) -> Any:
    """The stack on batches of sequences, whose first feature says whether a token is padding."""
    return lambda p, x: jax.vmap(lambda row: stack.fn(p, row))(x)


def batches() -> tuple[list[jax.Array], list[jax.Array]]:
    """Two batches of two sequences of 5 tokens, and the same with the last tokens padded."""
    full = [inputs(2, 5, 3, seed=seed) for seed in (1, 2)]
    padded = [batch.at[0, 3:].set(PADDING) for batch in full]
    return full, [padded[0], padded[1].at[1].set(PADDING)]


def real(x: jax.Array) -> jax.Array:
    return x[..., 0] != PADDING


@pytest.fixture(scope="module")
def stack() -> stacks.Stack:
    return stacks.unrolled()


@pytest.fixture(scope="module")
def graph(stack: stacks.Stack) -> Graph:
    return jaxprune.trace(embedded(stack), stack.params, batches()[0][0])


def pruned(graph: Graph, params: Any, some: list[jax.Array], **more: Any) -> posttraining.Result:
    method = posttraining.wanda()
    return posttraining.prune_blocks(
        graph, params, some, method, sparsity=0.5, pattern=FREE, **more
    )


def by_hand(params: Any, rows: np.ndarray) -> list[Any]:
    """Wanda's masks of the blocks on tokens that count; the stack mixes no tokens."""

    def mask(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
        score = np.abs(weight) * np.sqrt((x**2).sum(0))[:, None]
        return score > np.sort(score, axis=0)[len(weight) // 2 - 1]

    x, masks = rows @ np.asarray(params["first"]), list[Any]()
    for w in jax.tree.map(np.asarray, params["blocks"]):
        inside = np.maximum(x @ w["up"], 0)
        masks.append({"up": mask(w["up"], x), "down": mask(w["down"], inside)})
        up, down = (np.where(masks[-1][n], w[n], 0) for n in ("up", "down"))
        x = x + np.maximum(x @ up, 0) @ down
    return masks


def test_padded_tokens_are_in_no_statistic(stack: stacks.Stack, graph: Graph) -> None:
    _, padded = batches()
    found = pruned(graph, stack.params, padded, mask=real).masks["blocks"]
    want = by_hand(stack.params, np.concatenate([batch[real(batch)] for batch in padded]))
    jax.tree.map(np.testing.assert_array_equal, found, want)
    with_padding = pruned(graph, stack.params, padded).masks["blocks"]
    assert (with_padding[1]["down"] != found[1]["down"]).any()


def test_a_mask_of_ones_changes_nothing(stack: stacks.Stack, graph: Graph) -> None:
    full, _ = batches()
    found, want = (pruned(graph, stack.params, full, **more) for more in ({"mask": real}, {}))
    jax.tree.map(np.testing.assert_array_equal, found.params, want.params)
    errors = [[w.error for block in r.blocks for w in block.weights] for r in (found, want)]
    np.testing.assert_allclose(*errors, rtol=1e-6)


def test_a_scan_follows_the_mask_too(stack: stacks.Stack, graph: Graph) -> None:
    scanned, (_, padded) = stacks.scanned(), batches()
    traced = jaxprune.trace(embedded(scanned), scanned.params, padded[0])
    found = pruned(traced, scanned.params, padded, mask=real)
    listed = pruned(graph, stack.params, padded, mask=real)
    want = np.stack([block["up"] for block in listed.params["blocks"]])
    np.testing.assert_array_equal(found.params["blocks"]["up"], want)


def test_tokens_and_sequences_that_count(stack: stacks.Stack, graph: Graph) -> None:
    model = Blocks(graph, stack.params, batches()[1], where=None, needs=("squares",), mask=real)
    model.forward(0)  # what comes before the first block
    (up, _) = model.weights(model.prunable[0])
    # 3 and 5 tokens of the first batch; 3 of the second, whose other sequence is all padding.
    assert float(up.inputs.tokens) == 11
    assert float(up.inputs.sequences) == 3


def test_outliers_are_those_of_tokens_that_count(stack: stacks.Stack, graph: Graph) -> None:
    full, _ = batches()
    found = posttraining.outlier_ratios(graph, stack.params, full, multiple=2.0)
    masked = [batch.at[:, 4:].set(PADDING) for batch in full]
    short = jaxprune.trace(embedded(stack), stack.params, full[0][:, :4])
    want = posttraining.outlier_ratios(
        short, stack.params, [batch[:, :4] for batch in full], multiple=2.0
    )
    got = posttraining.outlier_ratios(graph, stack.params, masked, multiple=2.0, mask=real)
    np.testing.assert_allclose(got, want)
    assert found != got


WRONG: dict[str, tuple[Any, str]] = {
    "numbers": (
        lambda x: x[..., 0],
        "mask returned float32[2, 5] for inputs float32[2, 5, 3]. It must be one boolean for each "
        "token, such as tokens != padding.",
    ),
    "another shape": (
        lambda x: jnp.ones((5, 2), bool),
        "mask returned bool[5, 2] for inputs float32[2, 5, 3]. It must be one boolean for each "
        "token, such as tokens != padding.",
    ),
    "nothing": (
        lambda x: jnp.zeros((2, 5), bool),
        "mask counts no token in any batch. True is a token that counts.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mask_that_does_not_fit(case: str, stack: stacks.Stack, graph: Graph) -> None:
    mask, text = WRONG[case]
    with pytest.raises(ValueError) as caught:
        pruned(graph, stack.params, batches()[0], mask=mask)
    assert str(caught.value) == text


def test_a_square_mask(stack: stacks.Stack) -> None:
    square = inputs(5, 5, 3)
    traced = jaxprune.trace(embedded(stack), stack.params, square)
    with pytest.raises(ValueError) as caught:
        pruned(traced, stack.params, [square], mask=real)
    assert str(caught.value) == (
        "mask has shape (5, 5): inside the model, axes of one size cannot be told apart. Give "
        "batches whose number of sequences is not their length."
    )


def test_a_model_that_turns_its_tokens_over(stack: stacks.Stack) -> None:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        return embedded(stack)(p, jnp.swapaxes(x, 0, 1))

    some = inputs(2, 5, 3)
    with pytest.raises(ValueError) as caught:
        pruned(jaxprune.trace(fn, stack.params, some), stack.params, [some], mask=real)
    assert str(caught.value) == (
        "mask of shape (2, 5) cannot be followed into the block of 'blocks/0/up', whose inputs are "
        "float32[5, 2, 4]: one of them must begin with the mask's axes, in this order, and the "
        "weights' inputs must keep them. Prune without mask=, on windows that are full."
    )


@pytest.mark.slow  # compiles a decoder's block for two lengths
def test_padding_behind_the_text_of_a_llama() -> None:
    config = models.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    params = models.init_llama(config, jax.random.key(0), stacked=True)
    params = jax.tree.map(lambda leaf: 10.0 * leaf if leaf.ndim > 2 else leaf, params)
    text = jax.random.randint(jax.random.key(1), (3, 8), 1, 32)
    padded = jnp.pad(text, ((0, 0), (0, 4)))

    def masks(tokens: jax.Array, **more: Any) -> Any:
        fn, where = models.llama(config), "^layers/.*kernel$"
        graph = jaxprune.trace(fn, params, tokens)
        return pruned(graph, params, [tokens], where=where, **more).masks

    found, want = masks(padded, mask=lambda tokens: tokens != 0), masks(text)
    jax.tree.map(np.testing.assert_array_equal, found, want)
    leaves = zip(jax.tree.leaves(masks(padded)), jax.tree.leaves(want), strict=True)
    assert any((a != b).any() for a, b in leaves)
