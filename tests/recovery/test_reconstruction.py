"""Reconstruction block after block, against the same done by hand, and what can go wrong."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import recovery
from tests.graph import stacks
from tests.graph.cases import inputs

BATCHES = [inputs(5, 3, seed=seed) for seed in (1, 2)]
RATE = 0.05


def pruned(params: Any) -> tuple[Any, Any]:
    """The matrices of the blocks without every third weight."""
    masks = jax.tree.map(
        lambda leaf: jnp.broadcast_to(
            (jnp.arange(32) % 3 != 0).reshape(leaf.shape[-2:]), leaf.shape
        ),
        params["blocks"],
    )
    return jaxprune.apply_masks(params, {"blocks": masks}), {"blocks": masks}


def down(block: recovery.BlockToTrain) -> Any:
    return recovery.full(block.params, where="down")


def reconstruct(stack: stacks.Stack, **options: Any) -> recovery.Reconstruction:
    graph = jaxprune.trace(stack.fn, stack.params, *stack.inputs)
    params, masks = pruned(stack.params)
    options = {
        "dense": stack.params,
        "adapters": down,
        "optimizer": optax.sgd(RATE),
        "steps": 3,
        "key": jax.random.key(0),
    } | options
    given = options.pop("params", params), options.pop("masks", masks), options.pop("b", BATCHES)
    return recovery.reconstruct_blocks(graph, *given, **options)


@pytest.fixture(scope="module")
def stack() -> stacks.Stack:
    return stacks.unrolled()


@pytest.fixture(scope="module")
def result(stack: stacks.Stack) -> recovery.Reconstruction:
    return reconstruct(stack)


def by_hand(stack: stacks.Stack) -> tuple[list[np.ndarray], list[tuple[float, float]]]:
    """``down`` of each block after three steps of gradient descent, and the errors."""
    params, masks = pruned(stack.params)
    live = [np.asarray(batch @ params["first"]) for batch in BATCHES]
    found, errors = [], []
    for number, dense in enumerate(jax.tree.map(np.asarray, stack.params["blocks"])):
        up, kept = np.asarray(params["blocks"][number]["up"]), masks["blocks"][number]["down"]
        weight = np.asarray(params["blocks"][number]["down"])
        inside = [np.maximum(x @ up, 0) for x in live]
        wanted = [np.maximum(x @ dense["up"], 0) @ dense["down"] for x in live]

        def error(weight: np.ndarray) -> float:
            pairs = zip(inside, wanted, strict=True)
            return float(np.mean([((h @ weight - y) ** 2).mean() for h, y in pairs]))

        before = error(weight)
        for turn in (0, 1, 0):  # batches in turn
            h, y = inside[turn], wanted[turn]
            weight = weight - RATE * np.asarray(kept) * (2 / y.size * h.T @ (h @ weight - y))
        errors.append((before, error(weight)))
        live = [x + h @ weight for x, h in zip(live, inside, strict=True)]
        found.append(weight)
    return found, errors


def test_blocks_learn_on_what_the_blocks_before_give(
    stack: stacks.Stack, result: recovery.Reconstruction
) -> None:
    want, errors = by_hand(stack)
    for number, block in enumerate(result.params["blocks"]):
        np.testing.assert_allclose(block["down"], want[number], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(block["up"], pruned(stack.params)[0]["blocks"][number]["up"])
    np.testing.assert_allclose([b[2:4] for b in result.blocks], errors, rtol=1e-4)
    assert [(block.number, block.of) for block in result.blocks] == [(0, 3), (1, 3), (2, 3)]
    assert all(block.after < block.before for block in result.blocks)
    np.testing.assert_array_equal(result.params["first"], stack.params["first"])


def test_masks_are_kept(stack: stacks.Stack, result: recovery.Reconstruction) -> None:
    _, masks = pruned(stack.params)
    for block, mask in zip(result.params["blocks"], masks["blocks"], strict=True):
        for name in ("up", "down"):
            np.testing.assert_array_equal(np.asarray(block[name]) != 0, mask[name])


def test_a_scan_is_reconstructed_like_a_loop(result: recovery.Reconstruction) -> None:
    told: list[Any] = []
    found = reconstruct(stacks.scanned(), done=told.append)
    for name in ("up", "down"):
        layers = [block[name] for block in result.params["blocks"]]
        np.testing.assert_allclose(found.params["blocks"][name], np.stack(layers), rtol=1e-5)
    assert tuple(told) == found.blocks
    errors = [(block.before, block.after) for block in result.blocks]
    np.testing.assert_allclose([(b.before, b.after) for b in found.blocks], errors, rtol=1e-5)


def attention(p: Any, x: jax.Array) -> jax.Array:
    """Blocks of two heads with a bias, stacked."""

    def block(x: jax.Array, w: Any) -> Any:
        q = jnp.einsum("td,dhk->thk", x, w["query"])
        share = jax.nn.softmax(jnp.einsum("thk,shk->hts", q, q))
        return x + jnp.einsum("hts,shk,hkd->td", share, q, w["out"]) + w["bias"][None], None

    return jax.lax.scan(block, x, p)[0]


def test_low_rank_changes_and_biases_of_stacked_heads() -> None:
    rng = np.random.default_rng(0)
    shapes = {"query": (2, 4, 2, 2), "out": (2, 2, 2, 4), "bias": (2, 4)}
    params = {
        n: jnp.asarray(rng.normal(size=s, scale=0.4).astype(np.float32)) for n, s in shapes.items()
    }
    masks = {n: jnp.arange(32).reshape(shapes[n]) % 3 != 0 for n in ("query", "out")}
    seen: list[Any] = []

    def adapters(block: recovery.BlockToTrain) -> Any:
        made = recovery.mask_lora(
            block.params, block.masks, key=block.key, rank=2, alpha=2.0, graph=block.graph
        )
        seen.append(jax.tree.map(np.asarray, made))
        return made | recovery.full(block.params, where=recovery.is_bias)

    x = inputs(5, 4)
    found = recovery.reconstruct_blocks(
        jaxprune.trace(attention, params, x),
        jaxprune.apply_masks(params, masks),
        masks,
        [x],
        dense=params,
        adapters=adapters,
        optimizer=optax.sgd(0.1, momentum=0.9),
        steps=30,
        key=jax.random.key(0),
    )
    assert [made["out"].a.shape for made in seen] == [(4, 2)] * 2  # heads and head_dim together
    assert (seen[0]["out"].a != seen[1]["out"].a).all()
    assert all(block.after < 0.5 * block.before for block in found.blocks)
    for name, mask in masks.items():
        np.testing.assert_array_equal(np.asarray(found.params[name]) != 0, mask)
    assert (np.asarray(found.params["bias"]) != np.asarray(params["bias"])).all()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "steps": ({"steps": 0}, "steps must be 1 or more, got 0. It is those of each block."),
    "no batch": ({"b": []}, "batches is empty. Give at least one batch of the model's inputs."),
    "nothing": (
        {"adapters": lambda block: {}},
        "adapters gave nothing to train for block 0. Return {path: adapter}, as "
        "recovery.mask_lora and recovery.full do.",
    ),
    "indices": (
        {
            "adapters": lambda block: {
                "blocks/0/up": recovery.SparseDelta(jnp.arange(2), jnp.zeros(2), layout=None)
            }
        },
        "the adapter of 'blocks/0/up' in block 0 is a SparseDelta, whose indices have no "
        "gradient. Give recovery.mask_lora, scale_lora or full.",
    ),
    "another model": (
        {"dense": stacks.layers() | {"last": jnp.ones((4, 3))}},
        "params and dense differ at 'last': shapes (4, 2) and (4, 3). Pass the parameters of one "
        "model, after and before pruning.",
    ),
    "masks of others": (
        {"masks": {"other": jnp.ones(3, bool)}},
        "masks has entries without a parameter: other. The parameters are blocks/0/down, "
        "blocks/0/up, blocks/1/down, blocks/1/up, blocks/2/down, blocks/2/up, first, last. Pass "
        "masks made for these parameters.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_reconstructed(case: str, stack: stacks.Stack) -> None:
    options, text = WRONG[case]
    with pytest.raises(ValueError) as caught:
        reconstruct(stack, **options)
    assert str(caught.value) == text


def test_training_that_diverges(stack: stacks.Stack) -> None:
    text = (
        r"^the error of block 0 is (nan|inf) after training, and was \d\.\d+\. Give an optimizer "
        r"with a lower learning rate, and look at the calibration data\.$"
    )
    with pytest.raises(ValueError, match=text):
        reconstruct(stack, optimizer=optax.sgd(1e30))
