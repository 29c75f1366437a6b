"""The allocation that masks have: the layer ratios of SNIP, GraSP or any other method."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxprune._core import paths
from jaxprune._core.packing import is_packed, unpack
from jaxprune.types import Shapes, Tree


@dataclasses.dataclass(frozen=True)
class FromMasks:
    """Densities read off masks; see :func:`from_masks`."""

    exact_total: ClassVar[bool] = True
    layers: tuple[tuple[str, int, int], ...]  # path, weights kept, all weights

    @property
    def sparsity(self) -> float:
        """Share of zeros of the masks together."""
        return 1.0 - sum(kept for _, kept, _ in self.layers) / self._total

    @property
    def _total(self) -> int:
        return sum(size for _, _, size in self.layers)

    def __call__(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Return the density of every layer by path."""
        read = {path: 1.0 - kept / size for path, kept, size in self.layers}
        missing = [path for path in shapes if path not in read]
        if missing:
            raise ValueError(
                f"from_masks has no mask for {paths.listed(map(repr, missing))}. Its masks are "
                f"those of {paths.listed(map(repr, read))}. Select the same parameters with where=."
            )
        if shapes and sparsity > self.sparsity + 1.0 / self._total:
            raise ValueError(
                f"from_masks cannot serve sparsity={sparsity}: its masks have {self.sparsity:.6g}, "
                "and their ratios do not say where more could go. Read them off sparser masks."
            )
        # Within one weight it is the sparsity that the masks were made for.
        whole = abs(sparsity - self.sparsity) <= 1.0 / self._total
        scale = 1.0 if whole else sparsity / self.sparsity
        return {path: 1.0 - scale * read[path] for path in shapes}


def from_masks(masks: Tree) -> FromMasks:
    """Give each layer the density that it has in masks.

    ``density_l = 1 − (sparsity / S) · s_l`` with the masks' sparsity ``s_l`` of each layer and
    ``S`` of all. Random masks with the layer ratios of SNIP or GraSP keep what these say about
    layers and forget what they say about weights.

    Args:
      masks: masks in any container, boolean or packed, True = kept.

    Returns:
      The allocation. At the sparsity of the masks its counts are theirs; at a lower one, as on the
      way of a gradual schedule, the zeros are fewer in proportion.

    Raises:
      ValueError: no masks, or one that is empty. When it is called: a path without a mask, or a
        sparsity above the masks'.
      TypeError: a mask is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import allocation
      >>> masks = {"a": jnp.array([[True, True]]), "b": jnp.array([[True, False, False, False]])}
      >>> allocation.from_masks(masks)({"a": (1, 2), "b": (1, 4)}, 0.5)
      {'a': 1.0, 'b': 0.25}

    Reference:
      Liu et al., The unreasonable effectiveness of random pruning, arXiv:2202.02643, section 3.2
      (SNIP ratio, GraSP ratio).
    """
    leaves = paths.flatten(jax.tree.map(unpack, masks, is_leaf=is_packed))
    for path, leaf in leaves.items():
        if leaf.dtype != jnp.bool_:
            raise TypeError(
                f"the mask of {path!r} has dtype {leaf.dtype}, not bool. Masks are boolean, True = "
                "kept; convert with mask.astype(bool)."
            )
        if not leaf.size:
            raise ValueError(f"the mask of {path!r} is empty. Leave this parameter out.")
    if not leaves:
        raise ValueError("masks must hold at least one mask, got none.")
    return FromMasks(tuple((path, int(leaf.sum()), leaf.size) for path, leaf in leaves.items()))
