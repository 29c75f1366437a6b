"""RigL as jaxpruner computes it: one update of a layer, and a training run."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from jaxprune.transforms import cosine_drop
from tests.oracles import exact
from tests.oracles.pause import moments_of, pausable

Recorded = Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class Rounded:
    """Jaxpruner keeps ``round(n · density · (1 − share))`` weights; ours are shares of the live."""

    drop: Callable[[int], float]
    live: int
    size: int

    def __call__(self, step: int) -> float:
        density = np.float32(self.live / self.size)
        kept = round(float(self.size * density * np.float32(1.0 - self.drop(step))))
        return (self.live - kept) / self.live


def layer(mask: np.ndarray, drop: Callable[[int], float], **settings: Any) -> Any:
    """A transform of one layer with the recorded number of live weights."""
    live = int(mask.sum())
    return jaxprune.dynamic(
        pausable(optax.sgd(0.1, momentum=0.9)),
        exact.sparsity(live, mask.size),
        drop=Rounded(drop, live, mask.size),
        allocation=exact.counts({"kernel": live}),
        **settings,
    )


def with_masks(opt_state: Any, mask: np.ndarray) -> Any:
    """The state with the recorded first mask, which ours would draw otherwise."""
    return opt_state._replace(masks={"kernel": jnp.asarray(mask != 0)})


def test_one_update(recorded: Recorded) -> None:
    data = recorded("rigl")
    for match in data.matches(r"([^/]+)/new_mask"):
        case = match[1]
        mask, share = data[f"{case}/mask"], float(data[f"{case}/drop_fraction"])
        tx = layer(mask, lambda step, share=share: share, begin=0, every=1, end=1)
        params = {"kernel": jnp.asarray(data[f"{case}/w"])}
        opt_state = with_masks(tx.init(params), mask)
        grads = {"kernel": jnp.asarray(data[f"{case}/grad"])}
        _, opt_state = tx.update(grads, opt_state, params, pause=True)
        found = jaxprune.get_masks(opt_state)["kernel"]
        np.testing.assert_array_equal(found, data[f"{case}/new_mask"] != 0, err_msg=case)


def test_training_run(recorded: Recorded) -> None:
    data = recorded("rigl")
    settings = data.settings["traj"]
    every, stop = settings["update_freq"], settings["update_end_step"]
    begin = -(-settings["update_start_step"] // every) * every
    found = re.match(r"optax.cosine_decay_schedule\((.*), (\d+)\)", settings["drop_fraction"])
    assert found
    drop = cosine_drop(float(found[1]), int(found[2]))
    for match in data.matches(r"traj/w00/(.+)"):
        name = match[1]
        tx = layer(data[f"traj/mask00/{name}"], drop, begin=begin, every=every, end=stop + 1)
        params = {"kernel": jnp.asarray(data[f"traj/w00/{name}"])}
        opt_state = with_masks(tx.init(params), data[f"traj/mask00/{name}"])
        for call in sorted(int(m[1]) for m in data.matches(rf"traj/grad(\d+)/{name}")):
            step = call - 1
            updates_masks = begin <= step <= stop and step % every == 0
            grads = {"kernel": jnp.asarray(data[f"traj/grad{call:02d}/{name}"])}
            # The reference skips the optimizer where it changes masks.
            updates, opt_state = tx.update(grads, opt_state, params, pause=updates_masks)
            params = optax.apply_updates(params, updates)
            mask = jaxprune.get_masks(opt_state)["kernel"]
            np.testing.assert_array_equal(mask, data[f"traj/mask{call:02d}/{name}"] != 0)
            np.testing.assert_allclose(
                params["kernel"], data[f"traj/w{call:02d}/{name}"], rtol=1e-6, atol=1e-6
            )
            trace = moments_of(opt_state.inner_state)["kernel"]
            # jaxpruner restarts the momentum of grown weights and leaves that of dropped ones,
            # which no gradient reaches any more.
            np.testing.assert_allclose(
                jnp.where(mask, trace, 0.0),
                np.where(mask, data[f"traj/trace{call:02d}/{name}"], 0.0),
                rtol=1e-6,
                atol=1e-6,
            )
