"""Wanda and magnitude as locuslab/wanda prunes one matrix: the statistic, the masks, the search."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from jaxprune import posttraining
from jaxprune.graph import statistics
from tests.oracles import matrices

Recorded = Callable[[str], Any]
SELECTIONS: dict[str, dict[str, Any]] = {
    "wanda": {"unstr": posttraining.per_output, "variant": posttraining.cumulative},
    "magnitude": {"unstr": posttraining.below_threshold},
}


def test_masks(recorded: Recorded) -> None:
    data = recorded("wanda")
    weight, inputs = matrices.read(data["W"], data["X"])
    for match in data.matches(r"(wanda|magnitude)_(unstr|variant|nm)(\d+)_mask"):
        select = SELECTIONS[match[1]].get(match[2], posttraining.per_output)
        method: Any = getattr(posttraining, match[1])(select=select)
        pruned = method(weight, inputs, matrices.target(match[2], match[3]))
        np.testing.assert_array_equal(pruned.mask, data[match[0]].T, err_msg=match[0])
        np.testing.assert_array_equal(pruned.weight, np.where(data[match[0]], data["W"], 0).T)


def test_the_variants_search(recorded: Recorded) -> None:
    data = recorded("wanda")
    weight, inputs = matrices.read(data["W"], data["X"])
    for match in data.matches(r"(wanda_variant(\d+))_alpha"):
        scores = posttraining.wanda().scores(weight, inputs)
        found = posttraining.cumulative_search(scores, int(match[2]) / 100)
        np.testing.assert_allclose(found.share, data[match[0]], rtol=0, atol=1e-6)
        # Printed with six digits.
        np.testing.assert_allclose(found.sparsity, data[f"{match[1]}_sparsity"], rtol=0, atol=1e-6)


def test_the_statistic_after_each_batch(recorded: Recorded) -> None:
    data = recorded("wanda")
    batches, trace = data["X"], data["scaler_row_trace"]
    for seen in range(1, len(trace) + 1):
        found = captured(data["W"], batches[:seen]) / (seen * batches.shape[1])
        np.testing.assert_allclose(found, trace[seen - 1], rtol=1e-5)


def test_the_statistic_counts_sequences(recorded: Recorded) -> None:
    data = recorded("wanda")
    batches = data["X_B3"]
    found = captured(data["W"], batches) / (len(batches) * batches.shape[1])
    np.testing.assert_allclose(found, data["scaler_row_B3"], rtol=1e-5)
    flat = batches[:, 0]  # without a batch axis, each is one sequence
    found = captured(data["W"], flat) / len(flat)
    np.testing.assert_allclose(found, data["scaler_row_2d"], rtol=1e-5)


def captured(weight: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """The sum of squares of each input, as the reader gathers it."""
    shapes = tuple((batch.shape, batch.dtype.str) for batch in batches[:1])
    params = {"kernel": jnp.asarray(weight.T)}
    gather = reader(weight.T.shape, shapes[0])
    return np.asarray(gather(params, list(jnp.asarray(batches)))["kernel"])


@functools.cache
def reader(weight: tuple[int, ...], batch: tuple[tuple[int, ...], str]) -> Any:
    """One traced program for each shape."""
    params = {"kernel": jax.ShapeDtypeStruct(weight, jnp.float32)}
    x = jax.ShapeDtypeStruct(batch[0], jnp.dtype(batch[1]))
    graph = jaxprune.trace(lambda params, x: x @ params["kernel"], params, x)
    return graph.capture(statistics.sum_of_squares)


def test_the_setting_is_read_from_the_name() -> None:
    assert re.fullmatch(r"(\w+)_nm(\d+)_mask", "wanda_nm24_mask")
    assert matrices.target("nm", "24").pattern == jaxprune.NM(2, 4)
    assert matrices.target("unstr", "70").sparsity == 0.7
