"""The names that signatures use: aliases and protocols, nothing that runs."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax

Tree: TypeAlias = Any
"""A pytree: the container in which a framework keeps parameters, gradients, scores or masks."""

Mask: TypeAlias = jax.Array
"""A boolean array of a weight's shape; True = kept."""

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""The shape of every prunable weight by path, in tree order."""

Score: TypeAlias = Callable[[Tree, Tree], Tree]
"""``(params, grads) -> scores``: a tree of ``params``' structure; higher = kept."""

Allocation: TypeAlias = Callable[[Shapes, float], dict[str, float]]
"""``(shapes, sparsity) -> {path: density}``, computed in float64 on the host.

One that can also take a traced sparsity serves schedules without a window.

An allocation with an attribute ``exact_total = True`` promises densities whose weighted mean is
``1 - sparsity``; its counts are then rounded together, so that the total is exact.
"""


@runtime_checkable
class Schedule(Protocol):
    """A sparsity as a function of the step: a plain optax schedule that also says its window."""

    @property
    def begin(self) -> int | None:
        """First step of the window, or None without a window."""
        ...

    @property
    def end(self) -> int | None:
        """Step from which the sparsity is ``final``, or None without a window."""
        ...

    @property
    def init(self) -> float:
        """Sparsity before the window."""
        ...

    @property
    def final(self) -> float:
        """Sparsity after the window."""
        ...

    def at(self, step: int) -> float:
        """Return the sparsity at ``step`` in float64, on the host."""
        ...

    def __call__(self, step: Any) -> jax.Array:
        """Return the sparsity at ``step`` (integer, possibly traced, of any shape) as float32."""
        ...


@runtime_checkable
class AxisReader(Protocol):
    """Knows the axes of each parameter, as `jaxprune.graph.Graph` does."""

    def pattern_axis(self, path: str) -> int | tuple[int, ...]:
        """Return the contracted axis of one layer's weight, or axes."""
        ...

    def layer_axis(self, path: str) -> int | None:
        """Return the axis along which a parameter stacks layers, or None."""
        ...


@runtime_checkable
class Pattern(Protocol):
    """Which shapes zeros may take.

    A pattern selects *units* (single weights, blocks, slices, or members of a group). How many
    units are kept is an integer computed on the host from static shapes; which ones, is computed
    from the scores under ``jit``. A unit count may be traced.
    """

    @property
    def final_sparsity(self) -> float | None:
        """The only sparsity at which the pattern holds, or None if any will do."""
        ...

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        """Raise a ``ValueError`` that names ``path`` if the pattern does not fit ``shape``."""
        ...

    def units(self, shape: tuple[int, ...], density: Any) -> Any:
        """Return how many units are kept at ``density``.

        An ``int`` for a Python float; an int32 array, as exact as float32 is, for a traced density.
        """
        ...

    def mask(self, scores: jax.Array, kept: int | jax.Array) -> Mask:
        """Return the mask that keeps the ``kept`` best units; ties go to the lower index."""
        ...

    def holds(self, mask: Mask) -> jax.Array:
        """Return a boolean scalar: do the zeros of ``mask`` obey the pattern?"""
        ...
