"""Where jaxpruner's rules differ from ours: when it updates, and how it rounds."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import schedules
from tests.oracles import exact


@jax.jit
def _kept(size: jax.Array, sparsity: jax.Array) -> jax.Array:
    return jnp.maximum(1, jnp.round(size * (1.0 - sparsity)).astype(jnp.int32))


def kept(size: int, sparsity: float) -> int:
    """The number of weights that jaxpruner keeps: rounded in float32, and at least 1."""
    return int(_kept(jnp.float32(size), jnp.float32(sparsity)))


@functools.partial(jax.jit, static_argnames="power")
def _sparsity(target: jax.Array, progress: jax.Array, power: float) -> jax.Array:
    # An integer power is a product, another one is not.
    return target * (1.0 - (1.0 - progress) ** (int(power) if power == int(power) else power))


@dataclasses.dataclass(frozen=True)
class Gradual:
    """Jaxpruner's schedule for a single layer, as one of ours.

    Its masks change at multiples of ``every`` inside the window. Ours change at ``begin``, every
    few steps from there, and at ``end``: the same, once the window is cut to the first and the last
    multiple in it. Its sparsity is that of our ramp with an offset of 1, computed in float32 and
    rounded to a number of weights, which matters where the product is near a half.

    Attributes:
      ramp: our schedule, from 0.
      every: steps between updates.
      size: of the layer.
    """

    ramp: schedules.Polynomial
    every: int
    size: int

    @property
    def begin(self) -> int:
        return -(-self.ramp.begin // self.every) * self.every

    @property
    def end(self) -> int:
        return self.ramp.end // self.every * self.every

    @property
    def final(self) -> float:
        return self.at(self.end)

    def at(self, step: int) -> float:
        length = self.ramp.end - self.ramp.begin
        moved = min(max(step + self.ramp.offset - self.ramp.begin, 0), length)
        progress = jnp.float32(moved) / jnp.float32(length)
        sparsity = float(_sparsity(jnp.float32(self.ramp.final), progress, self.ramp.power))
        assert abs(sparsity - self.ramp.at(step)) < 1e-6
        return exact.sparsity(kept(self.size, sparsity), self.size)

    def __call__(self, step: Any) -> jax.Array:
        return self.ramp(step)
