"""Progressive gradient flow as its authors' code computes it: decays, frames, masks.

The reference counts epochs where a transform counts steps; an epoch is one step here, but for the
recording of phases, which says how many.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune

Recorded = Callable[[str], Any]
TARGET = jaxprune.NM(1, 8)


def looking(tx: Any, params: Any) -> Callable[[int], jax.Array]:
    """Return a function of the step: the forward weight."""
    state = tx.init(params)
    look = jax.jit(lambda step: jaxprune.forward_params(params, state._replace(step=step)))
    return lambda step: look(jnp.asarray(step, jnp.int32))["kernel"]


def pulled(tx: Any, params: Any, upstream: jax.Array) -> jax.Array:
    """Return the gradient of the dense weight, given that of the forward weight."""
    _, pull = jax.vjp(lambda p: jaxprune.forward_params(p, tx.init(params)), params)
    return pull({"kernel": upstream})[0]["kernel"]


@pytest.mark.parametrize("kind", ["linear", "exp"])
def test_decay(recorded: Recorded, kind: str) -> None:
    data = recorded("progressive_gradient_flow")
    params, upstream = {"kernel": jnp.asarray(data["w"].T)}, jnp.asarray(data["upstream"].T)
    steps = data["steps"]
    make = jaxprune.mdgf_linear if kind == "linear" else jaxprune.mdgf_exponential
    # Steps before the dense phase ends are negative in the reference: begin is moved up by them.
    begin = max(0, -int(steps.min()))
    end = begin + int(steps.max()) + 1
    for match in data.matches(rf"(mdgf_{kind}_([\d.e-]+))/w_forward"):
        tx = make(optax.sgd(0.0), TARGET, begin=begin, end=end, decay=float(match[2]))
        seen = looking(tx, params)
        for i, step in enumerate(steps):
            want = data[f"{match[1]}/w_forward"][i].T
            np.testing.assert_allclose(seen(int(step) + begin), want, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(
                data[f"{match[1]}/grad_w"][i].T, upstream, rtol=1e-6, atol=1e-6
            )
        np.testing.assert_array_equal(pulled(tx, params, upstream), upstream)


def test_phases(recorded: Recorded) -> None:
    data = recorded("progressive_gradient_flow")
    params = {"kernel": jnp.asarray(data["w"].T)}
    epochs, per_epoch, dense, fine = len(data["phase/w_forward"]), 100, 3, 4
    # Binary from the first epoch after `epochs - fine` (strictly).
    end = (epochs - fine + 1) * per_epoch
    tx = jaxprune.mdgf_exponential(
        optax.sgd(0.0), TARGET, begin=dense * per_epoch, end=end, decay=0.001
    )
    seen = looking(tx, params)
    for epoch, want in enumerate(data["phase/w_forward"]):
        np.testing.assert_allclose(
            seen(epoch * per_epoch), want.T, rtol=1e-6, atol=1e-6, err_msg=f"epoch {epoch}"
        )


@pytest.mark.parametrize("kind", ["sparsify", "fine"])
def test_frames(recorded: Recorded, kind: str) -> None:
    data = recorded("progressive_gradient_flow")
    params = {"kernel": jnp.asarray(data["w"].T)}
    masks: dict[Any, Any] = {}
    make = jaxprune.sdgf_stepwise if kind == "sparsify" else jaxprune.sdgf_geometric
    for match in data.matches(rf"(sdgf_{kind}_(\d+)_(\d+)_(\d+)_(\d+)_(\d+))/table"):
        name, n, m, dense, fine, total = match[1], *map(int, match.groups()[1:])
        tx = make(optax.sgd(0.0), jaxprune.NM(n, m), begin=dense, end=total - fine)
        rows = data[match[0]].tolist()
        seen = looking(tx, params)
        for epoch in range(dense, total):
            kept, group = next((r[1], r[2]) for r in reversed(rows) if r[0] <= epoch)
            pattern = jaxprune.NM(kept, group)
            if pattern not in masks:
                masks[pattern] = pattern.mask(jnp.abs(params["kernel"]), kept)
            want = masks[pattern]
            np.testing.assert_array_equal(seen(epoch) != 0, want, err_msg=f"{name} epoch {epoch}")
            if f"{name}/masks" in data.arrays:
                np.testing.assert_array_equal(want, data[f"{name}/masks"][epoch].T != 0)


def test_masks_along_axes(recorded: Recorded) -> None:
    data = recorded("progressive_gradient_flow")
    weight = jnp.abs(jnp.asarray(data["w"].T))
    for match in data.matches(r"mask_dim([01])_(\d+)_(\d+)"):
        n, m = int(match[2]), int(match[3])
        axis = 0 if match[1] == "0" else 1
        mask = jaxprune.NM(n, m, axis=axis).mask(weight, n)
        np.testing.assert_array_equal(mask, data[match[0]].T != 0)
    for match in data.matches(r"mask_conv_(\d+)_(\d+)"):
        n, m = int(match[1]), int(match[2])
        kernel = jnp.abs(jnp.asarray(data["mask_conv_w"].transpose(2, 3, 1, 0)))
        mask = jaxprune.NM(n, m).mask(kernel, n)
        np.testing.assert_array_equal(mask, data[match[0]].transpose(2, 3, 1, 0) != 0)


def test_unstructured(recorded: Recorded) -> None:
    data = recorded("progressive_gradient_flow")
    for match in data.matches(r"mask_unstructured_([\d.]+)"):
        want = data[match[0]] != 0
        # The reference keeps int((1 - rate) * n), ours round(): the test hands over the count.
        mask = jaxprune.top_k_mask(jnp.abs(jnp.asarray(data["w"])), int(want.sum()))
        np.testing.assert_array_equal(mask, want)
        assert int(want.sum()) == int((1 - float(match[1])) * want.size)
