"""What every one-shot method sees: one weight as a matrix, and the statistics of its input."""

import dataclasses
from typing import NamedTuple, Protocol

import jax

from jaxprune.patterns import NM, Unstructured


class Inputs(NamedTuple):
    """Raw sums over the calibration inputs of a weight, all float32; None where not asked for."""

    sequences: jax.Array  # (), how many sequences were seen: the batch axis, never tokens
    tokens: jax.Array  # (), how many inputs were seen
    squares: jax.Array | None = None  # (in,), sum of x**2
    gram: jax.Array | None = None  # (in, in), sum of x x^T
    gradient: jax.Array | None = None  # (in, out), of the loss with regard to the weight, by norm


@dataclasses.dataclass(frozen=True)
class Target:
    """What is to be pruned of one weight.

    Attributes:
      sparsity: share of zeros, in [0, 1).
      pattern: ``Unstructured()`` or ``NM(n, m)``; groups run along the input axis.
    """

    sparsity: float
    pattern: Unstructured | NM = Unstructured()


class Pruned(NamedTuple):
    """One weight after pruning."""

    weight: jax.Array  # (in, out), zero where the mask is False
    mask: jax.Array  # (in, out) bool, True = kept
    damping: jax.Array | None = (
        None  # (), added to the Gram matrix's diagonal, as a share of its mean
    )


class Method(Protocol):
    """``(weight (in, out), inputs, target) -> pruned``: pure, hashable, and can be mapped."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of `Inputs` that it reads."""
        ...

    def __call__(self, weight: jax.Array, inputs: Inputs, target: Target, /) -> Pruned:
        """Prune one matrix."""
        ...
