"""GBLM-Pruner as its authors' code computes it: gradient norms, and masks of one matrix."""

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import posttraining, scores
from tests.oracles import matrices

Recorded = Callable[[str], Any]
NAME = r"(gblm|gradient)_(l\d)(_inv|)_(unstr|nm)(\d+)_mask"


def test_masks_from_the_saved_gradients(recorded: Recorded) -> None:
    data = recorded("gblm")
    for match in data.matches(NAME):
        saved = data[f"grad_{match[2]}"]
        mask = pruned(data, match, as_divided(saved) if match[3] else saved)
        np.testing.assert_array_equal(mask, data[match[0]].T, err_msg=match[0])


@pytest.mark.parametrize("order", [1, 2])
def test_gradient_norms_and_their_masks(recorded: Recorded, order: int) -> None:
    data = recorded("gblm")
    norm = computed(data, order)
    # Ours are not rounded to 16 bits, and the reference adds up order 1 in them.
    np.testing.assert_allclose(
        norm, data[f"grad_l{order}"].astype(np.float32), rtol=3e-3, atol=1e-3
    )
    if order == 2:
        np.testing.assert_allclose(norm**2, data["grad_l2sq"], rtol=1e-5)
    for match in data.matches(NAME.replace(r"(l\d)", f"(l{order})")):
        flips = (pruned(data, match, norm) != data[match[0]].T).mean()
        assert flips <= 0.005, match[0]


def pruned(data: Any, match: re.Match[str], gradient: np.ndarray) -> np.ndarray:
    """The mask of our method for one recorded name."""
    weight, inputs = matrices.read(data["W"], data["X"], gradient)
    method = posttraining.gblm(inverse=bool(match[3]), gradient_only=match[1] == "gradient")
    return np.asarray(method(weight, inputs, matrices.target(match[4], match[5])).mask)


def as_divided(saved: np.ndarray) -> np.ndarray:
    """The gradient whose inverse is the one that the reference gets in 16 bits.

    It divides 1 by the saved gradient before it goes over to 32 bits, and that rounding moves
    weights past one another; the 1e-8 that it adds is 0 in 16 bits.
    """
    assert saved.dtype == np.float16
    with np.errstate(divide="ignore"):
        return 1.0 / (np.float16(1.0) / saved).astype(np.float32)


def computed(data: Any, order: int) -> np.ndarray:
    """The norms of the recorded gradients: those of losses that are linear in the weight."""
    params = {"kernel": jnp.zeros(data["W"].shape, jnp.float32)}
    norms: Any = scores.gradient_norm(
        lambda p, slope: jnp.sum(p["kernel"] * slope),
        params,
        list(jnp.asarray(data["G"])),
        order=order,
        scale=float(data.settings["scale"]),
    )
    return np.asarray(norms["kernel"])
