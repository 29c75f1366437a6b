"""RIA as its authors' code prunes one matrix."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxprune import posttraining
from tests.oracles import matrices

Recorded = Callable[[str], Any]
# What a name says beyond the sparsity, and how it is asked for.
OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "_perout": {"select": posttraining.per_output},
    "_a1": {"power": 1.0},
    "_realloc": {"permute": True},
}


def test_masks(recorded: Recorded) -> None:
    data = recorded("ria")
    weight, inputs = matrices.read(data["W"], data["X"])
    for match in data.matches(r"(unstr|nm)(\d+)(_perout|_a1|_realloc|)_mask"):
        options = {"select": posttraining.below_threshold, "power": data.settings["a"]}
        method = posttraining.ria(**(options | OPTIONS[match[3]]))
        pruned = method(weight, inputs, matrices.target(match[1], match[2]))
        np.testing.assert_array_equal(pruned.mask, data[match[0]].T, err_msg=match[0])
