"""Wanda, magnitude and SparseGPT of a whole Llama, as the code of Wanda's authors prunes it."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import models, posttraining
from tests.oracles import llama, matrices

Recorded = Callable[[str], Any]
NAME = r"(({})_({})(\d+))/logits"
METHODS: dict[str, Any] = {
    "wanda_unstr": posttraining.wanda(),
    "wanda_variant": posttraining.wanda(select=posttraining.cumulative),
    "wanda_nm": posttraining.wanda(),
    "magnitude_unstr": posttraining.magnitude(select=posttraining.below_threshold),
    "magnitude_nm": posttraining.magnitude(),
}


class Case(NamedTuple):
    """The recording, and our model of it."""

    data: Any
    graph: Any
    apply: Any
    params: Any
    batches: Any


@pytest.fixture
def case(recorded: Recorded) -> Case:
    data = recorded("e2e_llama")
    apply, params = models.llama(llama.config(data.settings)), llama.parameters(data)
    tokens = jnp.asarray(data["calib_ids"], jnp.int32)
    graph = jaxprune.trace(apply, params, tokens)
    return Case(data, graph, jax.jit(apply), params, [tokens])


def pruned(case: Case, match: re.Match[str], method: Any) -> posttraining.Result:
    target = matrices.target(match[3] or "nm", match[4])
    unstructured = isinstance(target.pattern, jaxprune.Unstructured)
    sparsity = target.sparsity if unstructured else None
    return posttraining.prune_blocks(
        case.graph, case.params, case.batches, method, sparsity=sparsity, pattern=target.pattern
    )


def check_logits_and_sparsity(case: Case, name: str, result: posttraining.Result) -> None:
    got = case.apply(result.params, jnp.asarray(case.data["test_ids"], jnp.int32))
    want = case.data[f"{name}/logits"]
    dense = case.apply(case.params, jnp.asarray(case.data["test_ids"], jnp.int32))
    assert np.abs(want - dense).max() > 0.1 * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-2 * np.abs(want).max(), err_msg=name)
    kernels = [np.asarray(kernel) for _, _, kernel in llama.linear(result.params)]
    zeros = sum((kernel == 0).sum() for kernel in kernels) / sum(kernel.size for kernel in kernels)
    np.testing.assert_allclose(zeros, case.data[f"{name}/sparsity"], atol=3e-3, err_msg=name)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("wanda", "unstr"),
        # Each is four more programs, one for every shape of a weight.
        pytest.param("wanda", "variant", marks=pytest.mark.slow),
        pytest.param("wanda", "", marks=pytest.mark.slow),
        pytest.param("magnitude", "unstr|", marks=pytest.mark.slow),
    ],
)
def test_scored_methods(case: Case, method: str, kind: str) -> None:
    for match in case.data.matches(NAME.format(method, kind)):
        result = pruned(case, match, METHODS[f"{match[2]}_{match[3] or 'nm'}"])
        for block, name, kernel in llama.linear(result.params):
            want = case.data[f"{match[1]}/model.layers.{block}.{name}.weight"].T
            other = np.asarray(kernel) != want  # what is kept does not change
            assert other.mean() <= (0.003 if block else 0.0), (match[1], block, name)
        check_logits_and_sparsity(case, match[1], result)


@pytest.mark.slow  # twelve programs; the default run has SparseGPT on one matrix
def test_sparsegpt(case: Case) -> None:
    method = posttraining.sparsegpt(
        blocksize=case.data.settings["sparsegpt_blocksize"],
        damping=case.data.settings["percdamp"],
        select=posttraining.below_threshold,
    )
    for match in case.data.matches(NAME.format("sparsegpt", "unstr|")):
        result = pruned(case, match, method)
        for block, name, kernel in llama.linear(result.params):
            want = case.data[f"{match[1]}/model.layers.{block}.{name}.weight"].T
            got, told = np.asarray(kernel), (match[1], block, name)
            same = (got == 0) == (want == 0)
            assert (~same).mean() <= 0.005, told
            np.testing.assert_allclose(
                got[same], want[same], rtol=5e-3, atol=5e-4, err_msg=str(told)
            )
        check_logits_and_sparsity(case, match[1], result)
