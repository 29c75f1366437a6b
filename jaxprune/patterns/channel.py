"""Zeros in whole slices."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._core.select import top_k_mask
from jaxprune.patterns import _common


@dataclasses.dataclass(frozen=True, repr=False)
class Channel:
    """Prune whole slices along an axis, such as the output channels of a kernel.

    A slice's score is the mean of its members' scores, taken in float32 at least.
    ``round(density · slices)`` slices are kept (half to even), and at least one; ties go to the
    lower index. Where a slice is spread over several devices its mean is a sum over them, one
    number for each slice, and may differ from the unsharded one in the last bit.

    Args:
      axis: the axis along which slices are counted; -1 is the output axis of a Flax kernel.

    Raises:
      TypeError: an axis that is not an integer.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import patterns
      >>> scores = jnp.array([[1.0, 2.0, 3.0], [1.0, 5.0, 0.0]])  # [in, out]
      >>> patterns.Channel(axis=-1).mask(scores, 1)
      Array([[False,  True, False],
             [False,  True, False]], dtype=bool)

    Reference:
      Li et al., Pruning filters for efficient ConvNets, arXiv:1608.08710.
    """

    axis: int

    def __post_init__(self) -> None:
        meaning = "the axis along which slices are counted"
        object.__setattr__(self, "axis", _common.as_int("Channel", "axis", self.axis, meaning))

    def __repr__(self) -> str:
        return _common.short_repr(self)

    @property
    def final_sparsity(self) -> None:
        """None: any sparsity will do."""
        return None

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        """Raise if a parameter does not have the axis.

        Raises:
          ValueError: naming the path, the shape and the remedy.
        """
        if not -len(shape) <= self.axis < len(shape):
            raise _common.misfit(
                self,
                path,
                shape,
                f"it has no axis {self.axis}",
                "Give another axis, or exclude this parameter with where=",
            )

    def units(self, shape: tuple[int, ...], density: Any) -> Any:
        """Return the number of slices that are kept at a density."""
        return _common.kept_units(shape[self.axis], density)

    def mask(self, scores: jax.Array, kept: int | jax.Array) -> jax.Array:
        """Return the mask of the ``kept`` best slices."""
        wide = scores if scores.dtype == jnp.float64 else scores.astype(jnp.float32)
        chosen = top_k_mask(jnp.mean(wide, self._others(scores.ndim)), kept)
        chosen = jnp.expand_dims(chosen, self._others(scores.ndim))
        return _common.sharded_like(jnp.broadcast_to(chosen, scores.shape), scores)

    def holds(self, mask: jax.Array) -> jax.Array:
        """Tell whether every slice is kept or pruned as a whole."""
        others = self._others(mask.ndim)
        return jnp.all(jnp.all(mask, others) == jnp.any(mask, others))

    def _others(self, rank: int) -> tuple[int, ...]:
        return tuple(a for a in range(rank) if a != self.axis % rank)
