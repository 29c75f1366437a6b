"""Zeros anywhere."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._core.select import top_k_mask
from jaxprune.patterns import _common


@dataclasses.dataclass(frozen=True)
class Unstructured:
    """Prune single weights, wherever their scores are lowest.

    ``round(density · n)`` weights of a layer are kept (half to even), and at least one.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import patterns
      >>> scores = jnp.array([[4.0, 1.0], [1.0, 3.0]])
      >>> patterns.Unstructured().mask(scores, 3)
      Array([[ True,  True],
             [False,  True]], dtype=bool)
    """

    @property
    def final_sparsity(self) -> None:
        """None: any sparsity will do."""
        return None

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        """Accept every shape."""

    def units(self, shape: tuple[int, ...], density: Any) -> Any:
        """Return the number of weights that are kept at a density."""
        return _common.kept_units(math.prod(shape), density)

    def mask(self, scores: jax.Array, kept: int | jax.Array) -> jax.Array:
        """Return the mask of the ``kept`` best weights; ties go to the lower flat index."""
        return top_k_mask(scores, kept)

    def holds(self, mask: jax.Array) -> jax.Array:
        """Return True: zeros may stand anywhere."""
        del mask
        return jnp.array(True)
