"""SparseGPT as IST-DASLab/sparsegpt solves one matrix."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import posttraining
from tests.oracles import matrices

Recorded = Callable[[str], Any]


def published(blocksize: int) -> posttraining.SparseGPT:
    return posttraining.sparsegpt(blocksize=blocksize, select=posttraining.below_threshold)


@functools.cache
def unstructured(blocksize: int) -> Any:
    """One program for all sparsities."""

    @jax.jit
    def prune(weight: jax.Array, inputs: posttraining.Inputs, sparsity: float) -> Any:
        return published(blocksize)(weight, inputs, posttraining.Target(sparsity))

    return prune


@functools.cache
def grouped(blocksize: int) -> Any:
    return jax.jit(published(blocksize), static_argnums=2)


def test_in_the_largest_blocks(recorded: Recorded) -> None:
    sizes, compare = cases(recorded("sparsegpt"))
    compare(max(sizes))


@pytest.mark.slow  # three programs for each size
def test_in_smaller_blocks(recorded: Recorded) -> None:
    sizes, compare = cases(recorded("sparsegpt"))
    smaller = sizes - {max(sizes)}
    assert smaller
    for size in smaller:
        compare(size)


def cases(data: Any) -> tuple[set[int], Callable[[int], None]]:
    """The recorded blocksizes, and a function that compares all that was recorded with one."""
    pattern = r"(?P<dead>dead_|)(?P<kind>unstr|nm)(?P<n>\d+)_bs(?P<size>\d+)_mask"
    found = list(data.matches(pattern))

    def compare(size: int) -> None:
        for match in found:
            if int(match["size"]) == size:
                compare_one(data, match)

    return {int(match["size"]) for match in found}, compare


def compare_one(data: Any, match: re.Match[str]) -> None:
    """Compare mask, weights and error of one case."""
    dead, name = match["dead"], match[0].removesuffix("_mask")
    weight, inputs = with_gram(data[f"{dead}W"], data[f"{dead}X"])
    target = matrices.target(match["kind"], match["n"])
    if match["kind"] == "unstr":
        pruned = unstructured(int(match["size"]))(weight, inputs, target.sparsity)
    else:
        pruned = grouped(int(match["size"]))(weight, inputs, target)
    mask = data[f"{name}_mask"].T
    # Inputs that were zero throughout may be kept by the choice, at a weight of 0.
    kept = np.asarray(pruned.mask) & (np.asarray(pruned.weight) != 0)
    assert (kept != mask).mean() <= 0.001, name
    both = mask & kept
    wanted = data[f"{name}_W"].T[both]
    np.testing.assert_allclose(pruned.weight[both], wanted, rtol=2e-3, atol=2e-5, err_msg=name)
    error = half_squared_error(data[f"{dead}H"], weight, pruned.weight)
    np.testing.assert_allclose(error, data[f"{name}_error"], rtol=1e-3, err_msg=name)


def test_uncorrelated_inputs(recorded: Recorded) -> None:
    data = recorded("sparsegpt")
    unit = np.eye(data["W"].shape[1], dtype=np.float32)
    weight, inputs = with_gram(data["W"], unit[None, None])
    pruned = unstructured(128)(weight, inputs, 0.5)
    np.testing.assert_allclose(pruned.weight, data["identity_W"].T, rtol=1e-5, atol=1e-6)


def with_gram(weight: np.ndarray, batches: np.ndarray) -> tuple[jax.Array, posttraining.Inputs]:
    """Read a recording; the Gram matrix is added up in float32, as the reference does."""
    matrix, inputs = matrices.read(weight, batches)
    x = batches.reshape(-1, batches.shape[-1])
    return matrix, inputs._replace(gram=jnp.asarray(x.T @ x))


def half_squared_error(hessian: np.ndarray, weight: Any, pruned: Any) -> float:
    """The reference's sum of (w − q)² / 2U_ii², which is ½ tr(Δᵀ H Δ) with the damped H."""
    dead = np.diag(hessian) == 0
    hessian = hessian.astype(np.float64) + np.diag(dead.astype(np.float64))
    hessian += 0.01 * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    change = np.where(dead[:, None], 0.0, np.asarray(weight, np.float64) - np.asarray(pruned))
    return float(np.sum((hessian @ change) * change)) / 2
