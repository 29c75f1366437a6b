"""OWL as its authors' code prunes a small Llama: outliers, sparsities and masks of each block."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import models, posttraining
from jaxprune.graph import statistics
from jaxprune.posttraining.sequential import prune_blocks

Recorded = Callable[[str], Any]
NAME = r"((prune_(?:wanda|mag)_outlier)_([\d.]+)_(\d+))/outlier_pct"
METHODS: dict[str, Any] = {
    "prune_wanda_outlier": posttraining.wanda(),
    "prune_mag_outlier": posttraining.magnitude(select=posttraining.below_threshold),
}


class Case(NamedTuple):
    """The recording, our model of its shape, and the dense parameters."""

    data: Any
    graph: Any
    params: Any
    batches: Any


@pytest.fixture
def case(recorded: Recorded) -> Case:
    data = recorded("owl")
    params, tokens = parameters(data), jnp.asarray(data["calib_ids"], jnp.int32)
    graph = jaxprune.trace(models.llama(shape(data)), params, tokens)
    return Case(data, graph, params, [tokens])


def test_outliers_of_the_dense_model(case: Case) -> None:
    squares = case.graph.capture(statistics.sum_of_squares)(case.params, case.batches)
    score = posttraining.wanda().scores
    (tokens,) = case.batches
    count, size = jnp.float32(tokens.shape[0]), jnp.float32(tokens.size)
    blocks = [
        [
            score(
                leaf["kernel"], posttraining.Inputs(count, size, squares[f"{block}/{name}/kernel"])
            )
            for name, leaf in linear(case.params[block])
        ]
        for block in block_names(case.params)
    ]
    for match in case.data.matches(NAME):
        multiple = float(match[4])
        found = [100 * float(posttraining.outlier_ratio(b, multiple=multiple)) for b in blocks]
        np.testing.assert_allclose(found, case.data[match[0]], rtol=0, atol=0.05, err_msg=match[1])


@pytest.mark.slow  # four models of four blocks
def test_sparsities_and_masks_block_after_block(case: Case) -> None:
    for match in case.data.matches(NAME):
        sparsities = posttraining.owl_sparsities(
            case.data[match[0]], float(match[3]), spread=case.data.settings["Lamda"]
        ).tolist()
        result = prune_blocks(
            case.graph,
            case.params,
            case.batches,
            METHODS[match[2]],
            sparsity=lambda block, given=sparsities: given[block],
            pattern=jaxprune.Unstructured(),
        )
        for index, block in enumerate(block_names(case.params)):
            masks = {n: np.asarray(leaf["kernel"]) for n, leaf in linear(result.masks[block])}
            kept = sum(m.sum() for m in masks.values()) / sum(m.size for m in masks.values())
            want = case.data[f"{match[1]}/layer_sparsity"][index]
            np.testing.assert_allclose(1 - kept, want, rtol=0, atol=2e-3, err_msg=match[1])
            assert len(masks) == 7
            for name, mask in masks.items():
                other = case.data[f"{match[1]}/mask/{index}/{name.replace('/', '.')}.weight"]
                assert (mask != other.T).mean() <= 0.005, (match[1], index, name)


def shape(data: Any) -> models.LlamaConfig:
    """The configuration of the recorded model."""
    settings, first = data.settings, "dense/model.layers.0.self_attn"
    width = settings["hidden"] // settings["heads"]
    return models.LlamaConfig(
        vocab_size=len(data["dense/model.embed_tokens.weight"]),
        hidden_size=settings["hidden"],
        intermediate_size=settings["inter"],
        num_hidden_layers=len(list(data.matches(r"dense/model\.layers\.\d+\.input_layernorm.*"))),
        num_attention_heads=settings["heads"],
        num_key_value_heads=len(data[f"{first}.k_proj.weight"]) // width,
        head_dim=width,
        rms_norm_eps=settings["rms_norm_eps"],
        rope_theta=settings["rope_theta"],
    )


def parameters(data: Any) -> Any:
    """The dense parameters, as our model takes them."""
    params: Any = {}
    for match in data.matches(r"dense/(?:model\.)?(.+)\.weight"):
        *parents, last = match[1].replace("layers.", "layers_").split(".")
        leaf = data[match[0]]
        kind = "scale" if leaf.ndim == 1 else "embedding" if last == "embed_tokens" else "kernel"
        node = params
        for parent in (*parents, last):
            node = node.setdefault(parent, {})
        node[kind] = jnp.asarray(leaf.T if kind == "kernel" else leaf)
    return params


def block_names(params: Any) -> list[str]:
    """The blocks in order."""
    return sorted((n for n in params if n.startswith("layers_")), key=lambda n: int(n[7:]))


def linear(block: Any) -> list[tuple[str, Any]]:
    """The linear layers of one block, as `self_attn/q_proj`."""
    parts = ("self_attn", "mlp")
    return [(f"{part}/{name}", leaf) for part in parts for name, leaf in block[part].items()]
