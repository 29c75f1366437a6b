"""ALPS as mazumder-lab/ALPS solves one matrix; only the error and the support are promised."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxprune import posttraining
from tests.oracles import matrices
from tests.oracles.test_sparsegpt import with_gram

Recorded = Callable[[str], Any]


def test_error_and_support(recorded: Recorded) -> None:
    data = recorded("alps")
    weight, inputs = with_gram(data["W"], data["X"])
    method = posttraining.alps()
    grouped = jax.jit(method, static_argnums=2)
    # The sparsity is traced: one program for all.
    unstructured = jax.jit(lambda w, i, s: method(w, i, posttraining.Target(s)))
    for match in data.matches(r"(unstr|nm)(\d+)_mask"):
        target = matrices.target(match[1], match[2])
        if match[1] == "nm":
            pruned = grouped(weight, inputs, target)
        else:
            pruned = unstructured(weight, inputs, target.sparsity)
        mask, name = data[match[0]].T, match[0].removesuffix("_mask")
        overlap = (np.asarray(pruned.mask) & mask).sum() / mask.sum()
        assert overlap >= 0.98, name
        assert abs(int(pruned.mask.sum()) - mask.sum()) <= 1, name
        found = relative_error(data["XtX"], data["W"].T, pruned.weight)
        np.testing.assert_allclose(found, data[f"{name}_error"], rtol=0.02, err_msg=name)


def relative_error(gram: np.ndarray, weight: np.ndarray, pruned: Any) -> float:
    """The squared error of the outputs relative to them, with the damped Gram matrix."""
    gram = gram.astype(np.float64) + 0.01 * np.mean(np.diag(gram)) * np.eye(len(gram))
    dense = weight.astype(np.float64)
    change = dense - np.asarray(pruned)
    return float(np.sum((gram @ change) * change) / np.sum((gram @ dense) * dense))
