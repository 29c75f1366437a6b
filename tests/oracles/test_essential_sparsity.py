"""The one-shot sweep of Essential Sparsity: by layer, in one ranking, and N:M."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import NM, allocation, posttraining
from tests.oracles import exact

Recorded = Callable[[str], Any]


def kernels(data: Any, tag: str) -> dict[str, jax.Array]:
    """The weights of a tag in our layout, `[in, out]`, by number of the layer."""
    return {m[1]: jnp.asarray(data[m[0]].T) for m in data.matches(rf"{tag}_w(\d+)")}


def assert_pruned(data: Any, tag: str, pruned: Any, masks: Any) -> None:
    for name, weights in kernels(data, tag).items():
        want = data[f"{tag}_mask{name}"].T.astype(bool)
        np.testing.assert_array_equal(masks[name], want)
        np.testing.assert_array_equal(pruned[name], np.where(want, weights, 0.0))


def assert_percentage(data: Any, tag: str, masks: Any) -> None:
    kept, total = (sum(int(f(m)) for m in masks.values()) for f in (jnp.sum, jnp.size))
    want = float(data[f"{tag}_sparsity_pct"])
    assert 100.0 * exact.sparsity(kept, total) == pytest.approx(want)


def percentages(data: Any, scope: str) -> list[tuple[str, float]]:
    """The tags of a scope, with their sparsity; `glob10` is 10%."""
    found = data.matches(rf"({scope}([\d.]+))_sparsity_pct")
    return [(match[1], float(match[2]) / 100.0) for match in found]


def test_one_ranking_is_ours(recorded: Recorded):
    data = recorded("essential_sparsity")
    for tag, sparsity in percentages(data, "glob"):
        params = kernels(data, tag)
        total = sum(weight.size for weight in params.values())
        # The reference rounds the number that is pruned, we the number that is kept.
        target = round(sparsity * total) / total
        pruned, masks = jaxprune.prune(params, target, allocation=allocation.global_(), where=".*")
        assert_pruned(data, tag, pruned, masks)
        assert_percentage(data, tag, masks)


def test_the_sweep_prunes_as_many_as_the_reference(recorded: Recorded):
    data = recorded("essential_sparsity")
    levels = sorted((sparsity, tag) for tag, sparsity in percentages(data, "glob"))
    params = kernels(data, levels[0][1])
    seen: list[Any] = []

    def evaluate(pruned: Any) -> float:
        seen.append(pruned)
        return 0.0

    steps = [0.0, *(sparsity for sparsity, _ in levels)]
    posttraining.essential_sparsity(params, evaluate, steps, where=".*")
    for pruned, (_, tag) in zip(seen[1:], levels, strict=True):
        for name, weights in kernels(data, tag).items():
            np.testing.assert_array_equal(weights, params[name])  # one model at all levels
        assert_pruned(data, tag, pruned, {name: leaf != 0 for name, leaf in pruned.items()})


def test_a_ranking_of_each_layer_is_ours(recorded: Recorded):
    data = recorded("essential_sparsity")
    for tag, sparsity in percentages(data, "layer"):
        params = kernels(data, tag)
        kept = {name: w.size - round(sparsity * w.size) for name, w in params.items()}
        pruned, masks = jaxprune.prune(params, sparsity, allocation=exact.counts(kept), where=".*")
        assert_pruned(data, tag, pruned, masks)
        assert_percentage(data, tag, masks)


def test_nm_is_ours_with_n_counting_what_is_kept(recorded: Recorded):
    data = recorded("essential_sparsity")
    for tag, n, m in {match.groups() for match in data.matches(r"(nm(\d)(\d+))_w\d+")}:
        removed, group = int(n), int(m)
        pattern = NM(group - removed, group)  # the reference's n is the number that is removed
        pruned, masks = jaxprune.prune(
            kernels(data, tag), removed / group, pattern=pattern, where=".*"
        )
        assert_pruned(data, tag, pruned, masks)
