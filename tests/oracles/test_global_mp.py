"""Global magnitude pruning with a minimum threshold (Global MP)."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxprune
from jaxprune import allocation
from tests.oracles import exact

Recorded = Callable[[str], Any]
Arrays = dict[str, np.ndarray]


def runs(data: Any) -> list[tuple[str, float, float]]:
    """The recorded runs: tag, sparsity, and minimum threshold in percent of all weights."""
    found = data.matches(r"(s([\d.]+)_mt([\d.]+))/min_weight_target")
    return [(match[1], float(match[2]), float(match[3])) for match in found]


def reach(values: np.ndarray, k: int) -> float:
    """The k-th smallest value, counted from 1; below 1 it is the smallest."""
    return np.sort(values.ravel())[max(k, 1) - 1]


def assert_masks(masks: Any, want: Arrays) -> None:
    for name, mask in want.items():
        np.testing.assert_array_equal(masks[name], mask.astype(bool))


def test_masks_of_one_ranking_are_ours(recorded: Recorded):
    data = recorded("global_mp")
    for tag, target, _ in runs(data):
        scores = {name: np.abs(w) for name, w in data.under(f"{tag}/w").items()}
        # The reference pools one more weight, 0.0, and keeps what reaches the k-th smallest,
        # k = int(s * N): one more than it means to, and all that tie with it.
        pool = np.concatenate([np.zeros(1, np.float32), *(s.ravel() for s in scores.values())])
        threshold = reach(pool, int(target * pool.size))
        kept = sum(int((s >= threshold).sum()) for s in scores.values())
        masks = jaxprune.make_masks(
            {name: jnp.asarray(s) for name, s in scores.items()},
            exact.sparsity(kept, pool.size - 1),
            allocation=allocation.global_(),
            where=".*",
        )
        assert_masks(masks, data.under(f"{tag}/mask_global"))


def test_the_redistribution_is_ours(recorded: Recorded):
    data = recorded("global_mp")
    for tag, target, percent in runs(data):
        masks = data.under(f"{tag}/mask_global")
        shapes = {name: mask.shape for name, mask in masks.items()}
        least = int(data[f"{tag}/min_weight_target"])
        pooled = 1 + sum(mask.size for mask in masks.values())
        assert least == int(pooled * percent / 100)
        got = allocation.minimum_threshold(
            {name: 1.0 - mask.mean(dtype=np.float64) for name, mask in masks.items()},
            shapes,
            target,
            min_kept=least,
        )
        want = data[f"{tag}/layer_sparsities"]
        np.testing.assert_allclose(list(got.values()), want, rtol=1e-9, atol=1e-12)
        for (name, mask), sparsity in zip(masks.items(), got.values(), strict=True):
            assert (1.0 - sparsity) * mask.size >= min(least, mask.size) - 1e-6, (tag, name)


def test_masks_with_a_minimum_threshold_are_ours(recorded: Recorded):
    data = recorded("global_mp")
    for tag, target, _ in runs(data):
        scores = {name: np.abs(w) for name, w in data.under(f"{tag}/w").items()}
        sparsities = data[f"{tag}/layer_sparsities"].tolist()
        # Again the k-th smallest itself is kept, with its ties: convert the counts.
        kept = {
            name: int((s >= reach(s, int(share * s.size))).sum())
            for (name, s), share in zip(scores.items(), sparsities, strict=True)
        }
        masks = jaxprune.make_masks(
            {name: jnp.asarray(s) for name, s in scores.items()},
            target,
            allocation=exact.counts(kept),
            where=".*",
        )
        assert_masks(masks, data.under(f"{tag}/mask_mt"))
