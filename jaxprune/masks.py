"""The hinge: score + allocation + pattern -> masks; apply them."""

import dataclasses
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import allocation as allocations
from jaxprune._core import paths, turns
from jaxprune._core.counts import Count, as_count
from jaxprune._core.packing import is_packed, unpack
from jaxprune._core.prunable import Where, default_where, select
from jaxprune._core.select import global_top_k_mask, refuse_nan
from jaxprune.patterns import NM, Unstructured
from jaxprune.schedules import as_sparsity
from jaxprune.scores import magnitude
from jaxprune.types import Allocation, Pattern, Score, Shapes, Tree

Patterns: TypeAlias = Pattern | Mapping[str, Pattern]
Counts: TypeAlias = dict[str, Any]
"""Units kept, by path: an integer, or one for each layer of a stacked weight."""

_WHOLE = ""  # the path under which a global ranking keeps its one count


@dataclasses.dataclass(frozen=True)
class MaskRule:
    """How masks follow from scores, apart from the sparsity: pattern, allocation, stacked layers.

    Attributes:
      pattern: one pattern, or ``{regex: pattern}``; the first expression found in a path decides.
      allocation: how the budget is divided.
      layers: ``{regex: axis}`` of weights that stack one layer's weight along an axis.
    """

    pattern: Patterns = dataclasses.field(default_factory=Unstructured)
    allocation: Allocation = allocations.uniform
    layers: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def describe(self) -> str:
        """Return a text that is equal for equal rules, in any process."""
        return f"{self.pattern!r}|{describe(self.allocation)}|{sorted(self.layers.items())}"

    def pattern_of(self, path: str) -> Pattern:
        """Return the pattern of one parameter."""
        pattern = self._given_pattern(path)
        return pattern.at(path) if isinstance(pattern, NM) else pattern

    def _given_pattern(self, path: str) -> Pattern:
        if not isinstance(self.pattern, Mapping):
            return self.pattern
        for regex, pattern in self.pattern.items():
            if re.search(regex, path):
                return pattern
        raise ValueError(
            f"pattern has no entry for {path!r}; its expressions are "
            f"{paths.listed(map(repr, self.pattern))}. "
            "Add '.*': Unstructured() as the last entry, or exclude the parameter with where=."
        )

    def layer_axis(self, path: str, shape: tuple[int, ...]) -> int | None:
        """Return the axis along which a parameter stacks layers, or None."""
        for regex, axis in self.layers.items():
            if re.search(regex, path):
                if not -len(shape) <= axis < len(shape):
                    raise ValueError(
                        f"layers={{{regex!r}: {axis}}} names no axis of {path!r} of shape {shape}."
                    )
                return axis % len(shape)
        pattern = self._given_pattern(path)
        return pattern.layer_axis(path) if isinstance(pattern, NM) else None

    def _one_layer(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = self.layer_axis(path, shape)
        return shape if axis is None else shape[:axis] + shape[axis + 1 :]

    def check(self, shapes: Shapes) -> None:
        """Raise if the pattern does not fit a parameter, or the allocation not the pattern."""
        for path, shape in shapes.items():
            self.pattern_of(path).check(path, self._one_layer(path, shape))
        ranked = isinstance(self.allocation, allocations.Global)
        if ranked and not isinstance(self.pattern, Unstructured):
            raise ValueError(
                f"allocation={self.allocation!r} ranks single weights and cannot serve "
                f"pattern={self.pattern!r}. Use Unstructured(), or another allocation."
            )
        for regex in self.layers:
            if shapes and not any(re.search(regex, path) for path in shapes):
                raise ValueError(
                    f"layers has {regex!r}, which is found in none of the prunable parameters "
                    f"({paths.listed(shapes)}). Correct the expression."
                )

    def counts(self, shapes: Shapes, sparsity: Any, *, final: float | None = None) -> Counts:
        """Return how many units each parameter keeps; on the host unless the sparsity is traced.

        Args:
          shapes: shape of each prunable parameter, by path.
          sparsity: share of zeros, in [0, 1).
          final: where a schedule ends. Patterns and layers with a sparsity of their own reach
            it there, in proportion.
        """
        if isinstance(self.allocation, allocations.Global):
            return self._floors(shapes) | {_WHOLE: self._ranked_count(shapes, sparsity)}
        each = {
            name: self._one_layer(path, shape)
            for path, shape in shapes.items()
            for name in self._layer_names(path, shape)
        }
        allocation = self.allocation
        if isinstance(allocation, allocations.PerLayer) and allocation.of is None and final:
            allocation = dataclasses.replace(allocation, of=final)
        densities = allocation(each, sparsity)
        exact = getattr(allocation, "exact_total", False)
        weights = _largest_remainders(densities, each) if exact else None
        kept: Counts = {}
        for path, shape in shapes.items():
            names = self._layer_names(path, shape)
            pattern = self.pattern_of(path)
            if weights is not None and isinstance(pattern, Unstructured):
                units = [weights[name] for name in names]
            else:
                share = [self._density(path, densities[name], sparsity, final) for name in names]
                units = [pattern.units(each[n], d) for n, d in zip(names, share, strict=True)]
            stacked = self.layer_axis(path, shape) is not None
            kept[path] = _stack(units) if stacked else units[0]
        return kept

    def _density(self, path: str, density: Any, sparsity: Any, final: float | None) -> Any:
        """Let a pattern of fixed sparsity be the same in all layers, and end at its own."""
        own = self.pattern_of(path).final_sparsity
        if own is None:
            return density
        if isinstance(self.pattern, Mapping):
            return 1.0 - own * (sparsity / final if final else 1.0)
        return density if isinstance(self.allocation, allocations.PerLayer) else 1.0 - sparsity

    def _layer_names(self, path: str, shape: tuple[int, ...]) -> list[str]:
        axis = self.layer_axis(path, shape)
        return [path] if axis is None else [f"{path}[{i}]" for i in range(shape[axis])]

    def _ranked_count(self, shapes: Shapes, sparsity: Any) -> Any:
        floors = sum(int(np.sum(floor)) for floor in self._floors(shapes).values())
        total = sum(math.prod(shape) for shape in shapes.values())
        if not isinstance(sparsity, float | int):
            return jnp.maximum(jnp.round(total * (1.0 - sparsity)).astype(jnp.int32), floors)
        kept = round(total * (1.0 - sparsity))
        if floors > kept:
            raise ValueError(
                f"{self.allocation!r} keeps at least {floors} weights, but sparsity={sparsity} "
                f"leaves {kept} of {total}. Lower the floor or the sparsity."
            )
        return as_count(kept)

    def _floors(self, shapes: Shapes) -> Counts:
        """Return what each weight, or each layer that it stacks, keeps whatever its scores."""
        assert isinstance(self.allocation, allocations.Global)
        floors: Counts = {}
        for path, shape in shapes.items():
            floor = self.allocation.floor(math.prod(self._one_layer(path, shape)))
            axis = self.layer_axis(path, shape)
            floors[path] = floor if axis is None else _stack([floor] * shape[axis])
        return floors

    def live(self, shapes: Shapes, table: Counts) -> dict[str, np.ndarray]:
        """Return how many weights each parameter keeps, as float64, where units are kept.

        A global ranking is divided evenly, since only the scores tell how it will be; and a block
        at a padded edge counts as one of mean size.

        Args:
          shapes: shape of each prunable parameter, by path.
          table: the units of `counts` at several sparsities, one row for each.
        """
        if isinstance(self.allocation, allocations.Global):
            whole = table[_WHOLE]
            words = whole if isinstance(whole, Count) else Count(0, whole)
            total = np.asarray(words.high, np.float64) * 2.0**16 + np.asarray(words.low)
            size = sum(math.prod(shape) for shape in shapes.values())
            return {path: total * (math.prod(shape) / size) for path, shape in shapes.items()}
        return {path: self._live(path, shape, table[path]) for path, shape in shapes.items()}

    def _live(self, path: str, shape: tuple[int, ...], units: Any) -> np.ndarray:
        one, pattern = self._one_layer(path, shape), self.pattern_of(path)
        found, places = np.unique(np.asarray(units, np.int64), return_inverse=True)
        live = np.asarray([_weights(pattern, one, int(n)) for n in found], np.float64)
        live = live[places].reshape(np.shape(units))
        return live if self.layer_axis(path, shape) is None else live.sum(-1)

    def masks(self, scores: dict[str, jax.Array], counts: Counts) -> dict[str, jax.Array]:
        """Return the masks that keep the given number of units of each parameter."""
        if isinstance(self.allocation, allocations.Global):
            return self._ranked_masks(scores, counts)
        found: dict[str, jax.Array] = {}
        last = None
        for path, leaf in scores.items():
            found[path] = last = self._mask(path, turns.after(last, leaf), counts[path])
        return found

    def _mask(self, path: str, scores: jax.Array, kept: Any) -> jax.Array:
        pattern, axis = self.pattern_of(path), self.layer_axis(path, scores.shape)
        if axis is None:
            return pattern.mask(scores, kept)
        return jax.vmap(pattern.mask, in_axes=(axis, 0), out_axes=axis)(scores, jnp.asarray(kept))

    def _ranked_masks(self, scores: dict[str, jax.Array], counts: Counts) -> dict[str, jax.Array]:
        assert isinstance(self.allocation, allocations.Global)
        if self.allocation.min_kept or self.allocation.min_density:
            # What the floor keeps outranks everything, so that the total stays exact.
            scores = {
                path: jnp.where(
                    self._mask(path, leaf, counts[path]), jnp.full_like(leaf, jnp.inf), leaf
                )
                for path, leaf in scores.items()
            }
        # A dict would be sorted by path, and ties go to the earlier leaf of the tree.
        return dict(global_top_k_mask(OrderedDict(scores), counts[_WHOLE]))


def describe(function: Any) -> str:
    """Return a name for a function or value that is the same in another process."""
    name = getattr(function, "__qualname__", None)
    if name is not None:
        return f"{function.__module__}.{name}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(function))  # an address is new in every process


def _weights(pattern: Pattern, shape: tuple[int, ...], units: int) -> float:
    """Return how many weights of one layer some units hold."""
    if isinstance(pattern, NM):
        return dataclasses.replace(pattern, n=units).live(shape)
    return math.prod(shape) * units / pattern.units(shape, 1.0)


def _stack(units: list[Any]) -> Any:
    if any(isinstance(unit, jax.Array) for unit in units):
        return jnp.stack([jnp.asarray(unit, jnp.int32) for unit in units])
    return np.asarray(units, np.int32)


def _largest_remainders(densities: Mapping[str, float], shapes: Shapes) -> dict[str, int]:
    """Round the weights kept per layer so that their total is the rounded total."""
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    wanted = {path: densities[path] * size for path, size in sizes.items()}
    # A density can miss the integer that it stands for by a rounding error of float64.
    kept = {path: math.floor(value + 1e-9 * sizes[path]) for path, value in wanted.items()}
    kept = {path: max(count, int(densities[path] > 0.0)) for path, count in kept.items()}
    # The sum can miss a half, which is rounded to even, by an error of float64 as well.
    left = round(round(math.fsum(wanted.values()), 4)) - sum(kept.values())
    by_rest = sorted(kept, key=lambda path: kept[path] - wanted[path])
    for path in by_rest[: max(left, 0)]:
        kept[path] += 1
    for path in sorted(kept, key=lambda path: -kept[path])[: max(-left, 0)]:
        kept[path] -= 1
    return kept


def check_target(pattern: Patterns, sparsity: float) -> None:
    """Raise if a pattern of fixed sparsity is asked for another one."""
    own = None if isinstance(pattern, Mapping) else pattern.final_sparsity
    if own is not None and abs(own - sparsity) > 1e-6:
        raise ValueError(
            f"sparsity={sparsity} cannot be reached with pattern={pattern!r}, whose sparsity is "
            f"{own:g}. Pass sparsity={own:g}, or another pattern."
        )


def selected_tree(tree: Tree, leaves: Mapping[str, Any]) -> Tree:
    """Return ``tree`` with the given leaves and ``optax.MaskedNode`` elsewhere."""
    return paths.refill(tree, leaves)


def make_masks(
    scores: Tree,
    sparsity: float,
    *,
    pattern: Patterns = Unstructured(),
    allocation: Allocation = allocations.uniform,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
) -> Tree:
    """Turn scores into masks: the weights that are kept have the highest scores.

    Args:
      scores: tree of floating-point arrays with the shapes of the parameters; higher = kept.
      sparsity: share of zeros among the prunable weights, in [0, 1).
      pattern: which shapes zeros may take: a pattern, or ``{regex: pattern}`` where the first
        expression found in a path decides. Patterns of fixed sparsity, such as N:M, have their
        own in a mapping; alone, ``sparsity`` must be theirs.
      allocation: how the budget is divided among the parameters. A pattern of fixed sparsity is the
        same in all of them, and only `allocation.per_layer` makes exceptions.
      where: which leaves are prunable: a predicate on ``(path, leaf)``, a regular expression
        searched in the path, or a tree of bools. By default kernels of rank 2 and more, and no
        biases, norm scales and embeddings.
      layers: ``{regex: axis}``: parameters that stack the weights of several layers along an
        axis. Each layer then has a budget and a ranking of its own.

    Returns:
      Tree like ``scores``: boolean arrays, True = kept, and ``optax.MaskedNode()`` for leaves
      that are not prunable.

    Raises:
      ValueError: sparsity out of range or not the pattern's, a pattern that does not fit a
        parameter, nothing selected, or NaN scores (outside jit); parameters are named by path.
      TypeError: a selected leaf is not floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> scores = {"kernel": jnp.array([[0.1, 0.9], [0.7, 0.3]]), "bias": jnp.ones(2)}
      >>> masks = jaxprune.make_masks(scores, 0.5)
      >>> masks["kernel"].tolist(), masks["bias"]
      ([[False, True], [True, False]], MaskedNode())
    """
    sparsity = as_sparsity("sparsity", sparsity)
    check_target(pattern, sparsity)
    rule = MaskRule(pattern, allocation, dict(layers or {}))
    leaves = select(scores, where)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    rule.check(shapes)
    refuse_nan(leaves)
    masks = rule.masks(leaves, rule.counts(shapes, sparsity, final=sparsity)) if leaves else {}
    return selected_tree(scores, masks)


def apply_masks(params: Tree, masks: Tree) -> Tree:
    """Set the pruned weights to exactly zero.

    Args:
      params: parameters in any container.
      masks: masks in any container, matched by path; boolean or packed, True = kept. Leaves
        without a mask pass through.

    Returns:
      Tree like ``params``. Zeros are chosen, not multiplied: NaN and infinities go too.

    Raises:
      ValueError: a mask has no parameter, or another shape; the path is named.
      TypeError: a mask is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> params = {"kernel": jnp.array([[-2.0, 1.0]]), "bias": jnp.array([5.0])}
      >>> jaxprune.apply_masks(params, {"kernel": jnp.array([[True, False]])})["kernel"].tolist()
      [[-2.0, 0.0]]
    """
    weights = paths.flatten(params)
    kept = mask_leaves(masks)
    check_masks(weights, kept)
    pruned = {
        path: jnp.where(m, weights[path], jnp.zeros_like(weights[path])) for path, m in kept.items()
    }
    return paths.refill(params, pruned, lambda path, leaf: leaf)


def mask_leaves(masks: Tree) -> dict[str, jax.Array]:
    """Return ``{path: boolean mask}``, unpacked."""
    unpacked = jax.tree.map(unpack, masks, is_leaf=is_packed)
    return paths.flatten(unpacked)


def check_masks(weights: Mapping[str, Any], masks: Mapping[str, Any]) -> None:
    """Raise if a mask has no parameter, another shape, or is not boolean."""
    unknown = [path for path in masks if path not in weights]
    if unknown:
        raise ValueError(
            f"masks has entries without a parameter: {paths.listed(unknown)}. The parameters are "
            f"{paths.listed(weights)}. Pass masks made for these parameters."
        )
    for path, mask in masks.items():
        if mask.shape != weights[path].shape:
            raise ValueError(
                f"the mask of {path!r} has shape {mask.shape}, its parameter "
                f"{weights[path].shape}. Pass masks made for these parameters."
            )
        if mask.dtype != jnp.bool_:
            raise TypeError(
                f"the mask of {path!r} has dtype {mask.dtype}, not bool. Masks are boolean, "
                "True = kept; convert with mask.astype(bool)."
            )


def prune(
    params: Tree,
    sparsity: float,
    *,
    score: Score = magnitude,
    pattern: Patterns = Unstructured(),
    allocation: Allocation = allocations.uniform,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
) -> tuple[Tree, Tree]:
    """Prune parameters once, without training.

    Args:
      params: parameters in any container.
      sparsity: share of zeros among the prunable weights, in [0, 1).
      score: what a weight is worth, ``(params, grads) -> scores``; called with ``grads=None``.
      pattern: as in `make_masks`.
      allocation: as in `make_masks`.
      where: as in `make_masks`.
      layers: as in `make_masks`.

    Returns:
      The parameters with exact zeros, and the masks.

    Raises:
      ValueError: as in `make_masks`.
      TypeError: as in `make_masks`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> params = {"kernel": jnp.array([[4.0, -3.0], [2.0, -1.0]])}
      >>> pruned, masks = jaxprune.prune(params, 0.5)
      >>> pruned["kernel"].tolist()
      [[4.0, -3.0], [0.0, 0.0]]
      >>> pruned, masks = jaxprune.prune(params, 0.5, pattern=jaxprune.NM(1, 2))
      >>> pruned["kernel"].tolist()
      [[4.0, -3.0], [0.0, 0.0]]
    """
    chosen = selected_tree(params, select(params, where))
    scores = score(chosen, None)
    masks = make_masks(
        scores,
        sparsity,
        pattern=pattern,
        allocation=allocation,
        where=lambda path, leaf: True,
        layers=layers,
    )
    return apply_masks(params, masks), masks
