"""GraNet as Shiweiliuiiiiiii/GraNet trains a small network."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune.transforms import cosine_drop
from tests.oracles import exact
from tests.oracles.pause import moments_of, pausable

Recorded = Callable[[str], Any]
PAUSES = 2  # calls of ours between two steps of the optimizer: one prunes, one regenerates
FLOOR = 0.005


@dataclasses.dataclass(frozen=True)
class Published:
    """The reference's schedule by calls of ours.

    The n-th update prunes to the cubic ramp's value at n, if n is below the ramp's end, which it
    therefore does not reach; and it keeps one weight fewer than asked for, by ``>``.

    Attributes:
      start: density before.
      final: density at the end of the ramp.
      first: number of the update at which the ramp begins.
      last: number of the update at which it ends.
      every: calls from one update to the next.
      begin: call of the first update.
      live: weights at the start.
      size: of the model.
    """

    start: float
    final: float
    first: int
    last: int
    every: int
    begin: int
    live: int
    size: int

    @property
    def end(self) -> int:
        return self.begin + (self.last - 2) * self.every

    def at(self, call: int) -> float:
        if call < self.begin or self.start == self.final:
            return exact.sparsity(self.live, self.size)
        update = min((call - self.begin) // self.every + 1, self.last - 1)
        left = 1.0 - (update - self.first) / (self.last - self.first)
        sparsity = (1.0 - self.start) + (self.start - self.final) * (1.0 - left**3)
        return exact.sparsity(int(self.size * (1.0 - sparsity)) - 1, self.size)

    def __call__(self, call: Any) -> jax.Array:
        raise AssertionError("its values are tabulated")


def transform(data: Any, tag: str, masks: dict[str, np.ndarray], drop: Callable[[int], float]):
    """Our transform with the recording's settings."""
    settings = data.settings
    every, length = settings["update_frequency"], settings["iters_per_epoch"]
    live, size = (
        sum(int(x) for x in sizes)
        for sizes in zip(*((m.sum(), m.size) for m in masks.values()), strict=True)
    )
    density = float(re.search(rf"\b{tag}\b[^ ]* ([0-9.]+)", settings["init_density"])[1])
    first, last = (
        int(settings[f"{name}_prune_epoch"] * length / every) for name in ("init", "final")
    )
    apart = every + PAUSES
    schedule = Published(density, settings["final_density"], first, last, apart, every, live, size)
    rates = data[f"{tag}/death_rate"]
    calls = len(rates) // every * apart

    # A call's number, less the pauses before it, is the number of steps of the optimizer.
    def share(call: int) -> float:
        return drop(((call - every) // apart + 1) * every)

    return jaxprune.granet(
        pausable(
            optax.chain(
                optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9, nesterov=True)
            )
        ),
        schedule,
        every=apart,
        end=calls,
        drop=share,
        start=exact.counts({name: int(mask.sum()) for name, mask in masks.items()}),
        where=lambda path, leaf: path in masks,
    )


def cosine_of(data: Any, tag: str) -> Callable[[int], float]:
    """The published decay, whose length is not recorded but follows from its first value."""
    rates, rate = data[f"{tag}/death_rate"], data.settings["death_rate0"]
    angle = np.arccos(2.0 * (rates[0] - FLOOR) / (rate - FLOOR) - 1.0)
    drop = cosine_drop(rate, round(np.pi / angle), floor=FLOOR)
    found = [drop(step) for step in range(1, len(rates) + 1)]
    np.testing.assert_allclose(found, rates, rtol=1e-9)
    return drop


@pytest.mark.parametrize("tag", ["s2s", "d2s", "gmp", "dst"])
def test_training_run(recorded: Recorded, tag: str) -> None:
    data = recorded("granet")
    every = data.settings["update_frequency"]
    first = {name: array != 0 for name, array in data.under(f"{tag}/mask0").items()}
    published = cosine_of(data, tag)
    tx = transform(data, tag, first, published if tag != "gmp" else lambda step: 0.0)
    params = weights_of(data, f"{tag}/w0")
    opt_state = tx.init(params)
    others = {name: optax.MaskedNode() for name in params if name not in first}
    masks = {name: jnp.asarray(mask) for name, mask in first.items()}
    opt_state = opt_state._replace(masks=masks | others)
    for step in range(1, len(data[f"{tag}/death_rate"]) + 1):
        grads = weights_of(data, f"{tag}/grad{step:02d}")
        for pause in (False, True, True)[: 3 if step % every == 0 else 1]:
            updates, opt_state = tx.update(grads, opt_state, params, pause=pause)
            params = optax.apply_updates(params, updates)
        if f"{tag}/mask{step:02d}/{next(iter(first))}" in data.arrays:
            check(data, f"{tag}/{{}}{step:02d}", params, opt_state)


def weights_of(data: Any, prefix: str) -> dict[str, jax.Array]:
    return {name: jnp.asarray(array) for name, array in data.under(prefix).items()}


def check(data: Any, place: str, params: Any, opt_state: Any) -> None:
    """Masks, weights and momentum after a step."""
    masks, trace = jaxprune.get_masks(opt_state), moments_of(opt_state.inner_state)
    for name, mask in data.under(place.format("mask")).items():
        np.testing.assert_array_equal(masks[name], mask != 0, err_msg=f"{place} {name}")
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    for name, weight in data.under(place.format("w")).items():
        close(params[name], weight, err_msg=f"{place} {name}")
    for name, moment in data.under(place.format("mom")).items():
        close(trace[name], moment, err_msg=f"{place} {name}")
