"""ADMM as fmfi-compbio/admm-pruning solves one matrix."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from jaxprune import posttraining
from tests.oracles import matrices
from tests.oracles.test_sparsegpt import with_gram

Recorded = Callable[[str], Any]
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "_perout": {"select": posttraining.per_output},
    "_fixedmask": {"mask_updates": 0},
    "_zero_iters": {"mask_updates": 0, "iterations": 0},
}


def test_as_it_is(recorded: Recorded) -> None:
    compare(recorded("admm"), r"(unstr|nm)(\d+)()_mask")


@pytest.mark.slow  # a program for each variant
def test_variants(recorded: Recorded) -> None:
    compare(recorded("admm"), r"(unstr|nm)(\d+)(_\w+)_mask")


def compare(data: Any, pattern: str) -> None:
    """Compare masks, and weights where both keep them."""
    weight, inputs = with_gram(data["W"], data["X"])
    for match in data.matches(pattern):
        method = jax.jit(posttraining.admm(**VARIANTS[match[3]]), static_argnums=2)
        pruned = method(weight, inputs, matrices.target(match[1], match[2]))
        mask = data[match[0]].T
        assert (np.asarray(pruned.mask) != mask).mean() <= 0.002, match[0]
        both = np.asarray(pruned.mask) & mask
        wanted = data[match[0].removesuffix("mask") + "W"].T
        np.testing.assert_allclose(
            pruned.weight[both], wanted[both], rtol=2e-3, atol=2e-5, err_msg=match[0]
        )
