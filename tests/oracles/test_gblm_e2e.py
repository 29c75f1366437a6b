"""GBLM-Pruner of a whole Llama, as its authors' code prunes it: gradients and masks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import models, posttraining, scores
from tests.oracles import llama, matrices

Recorded = Callable[[str], Any]
HALF_STEP = 2.0**-24  # the smallest number of float16, in which the reference stores


class Case(NamedTuple):
    """The recording, and our model of it with its gradients."""

    data: Any
    apply: Any
    params: Any
    tokens: jax.Array
    gradients: Any


@pytest.fixture
def case(recorded: Recorded) -> Case:
    data = recorded("gblm_e2e")
    apply = models.llama(llama.config(recorded("e2e_llama").settings))  # the same shape
    params, tokens = llama.parameters(data), jnp.asarray(data["calib_ids"], jnp.int32)
    gradients = scores.gradient_norm(
        lambda params, text: cross_entropy(apply(params, text), text),
        params,
        list(tokens[:, None]),  # a sequence at a time
        scale=data.settings["scale"],
        where=lambda path, leaf: path.startswith("layers_") and leaf.ndim == 2,
    )
    return Case(data, apply, params, tokens, gradients)


@pytest.mark.slow  # a gradient of the whole model; the default run has one of a small one
def test_gradients(case: Case) -> None:
    data = case.data
    for block, name, got in llama.linear(case.gradients):
        want = data[f"grad_l2/{name}_layer_{block}"].T.astype(np.float32)
        np.testing.assert_allclose(got, want, rtol=5e-3, atol=HALF_STEP, err_msg=name)


@pytest.mark.slow  # eight programs; the default run has GBLM on one matrix
def test_masks(case: Case) -> None:
    data, gradients = case.data, case.gradients
    graph = jaxprune.trace(case.apply, case.params, case.tokens)
    for kind, digits in sorted(settings(data)):
        target = matrices.target(kind, digits)
        result = posttraining.prune_blocks(
            graph,
            case.params,
            [case.tokens],
            posttraining.gblm(),
            sparsity=target.sparsity,
            pattern=target.pattern,
            gradients=gradients,
        )
        for block, name, mask in llama.linear(result.masks):
            want = data[f"{kind}{digits}/mask/model.layers.{block}.{name}.weight"].T
            assert (np.asarray(mask) != want).mean() <= 0.005, (kind, digits, block, name)


def settings(data: Any) -> set[tuple[str, str]]:
    """What was recorded, as `unstr` and `50`."""
    return {(m[1], m[2]) for m in data.matches(r"(unstr|nm)(\d+)/mask/.*")}


def cross_entropy(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Mean over the tokens that have one before them."""
    chosen = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.mean(jnp.take_along_axis(chosen, tokens[:, 1:, None], axis=2))
