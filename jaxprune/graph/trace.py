"""``trace``: read any JAX function."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from jaxprune.graph import axes
from jaxprune.graph.capture import Capture, bar, check_stats
from jaxprune.graph.cost import Cost, cost_of
from jaxprune.graph.matrix import layout_of
from jaxprune.graph.program import Program, read
from jaxprune.graph.segments import Segments, segments_of
from jaxprune.graph.table import print_uses
from jaxprune.graph.uses import Skipped, WeightUse
from jaxprune.types import Tree


@dataclasses.dataclass(frozen=True, repr=False)
class Graph:
    """What a function does with each of its parameters; `trace` makes it.

    Attributes:
      program: the traced function.
    """

    program: Program

    def __repr__(self) -> str:
        counts = len(self.paths), len(self.uses), len(self.skipped)
        return "Graph({} parameters, {} uses, {} skipped)".format(*counts)

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the parameters, in tree order."""
        return tuple(self.program.params)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter, by path."""
        return {path: tuple(leaf.shape) for path, leaf in self.program.params.items()}

    @property
    def uses(self) -> tuple[WeightUse, ...]:
        """Every use of a parameter, in the order of the equations."""
        return self.program.uses

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What could not be followed, and why; such weights are left dense."""
        return self.program.skipped

    def uses_of(self, path: str) -> list[WeightUse]:
        """Return the uses of one parameter.

        Raises:
          ValueError: the graph has no such parameter.
        """
        return self.program.uses_of(path)

    def where(self, *, of_parameters: bool = False) -> axes.Products:
        """Return a ``where``: the weights that a product with data sums over.

        Biases, scales, position and token embeddings are not among them, and neither are weights
        whose zeros do not arrive as zeros.

        Args:
          of_parameters: select weights that are multiplied with other parameters, too, such as
            the factors of a low-rank update.

        Returns:
          A function of ``(path, leaf)`` for the ``where=`` of the transforms.
        """
        return axes.products(self.program, of_parameters=of_parameters)

    def axis(self, path: str) -> int | tuple[int, ...]:
        """Return the axis, or axes, of a weight that run along features of its input.

        Several, as of an attention's output kernel ``[heads, head_dim, d]``, mean that groups of
        weights run through them flattened.

        Raises:
          ValueError: it has none, or its uses disagree.
        """
        found = axes.feature_axes(self.program, path)
        return found[0] if len(found) == 1 else found

    def pattern_axis(self, path: str) -> int | tuple[int, ...]:
        """Return `axis` as patterns count it: without the layer axis, since they see one layer.

        Raises:
          ValueError: as `axis`.
        """
        layer = self.layer_axis(path)
        found = axes.feature_axes(self.program, path)
        inner = tuple(axis - (layer is not None and axis > layer) for axis in found)
        return inner[0] if len(inner) == 1 else inner

    def layer_axis(self, path: str) -> int | None:
        """Return the axis along which a weight stacks the layers of a scan, or None."""
        return axes.layer_axis(self.program, path)

    def layers(self) -> dict[str, int]:
        """Return the ``layers=`` of the transforms for the weights of `where`."""
        found = {path: self.layer_axis(path) for path in self._chosen()}
        return {axes.exactly(path): axis for path, axis in found.items() if axis is not None}

    def capture(
        self,
        stats: Any,
        *,
        where: Callable[[str, Any], bool] | None = None,
        mask: Callable[..., Any] | None = None,
        progress: Callable[[Iterable[Any]], Iterable[Any]] = bar,
        max_bytes: int = 2**34,
    ) -> Capture:
        """Return a function that gathers statistics of the weights' inputs over batches.

        A batch is one compiled program; activations never leave the device, and statistics only at
        the end. Weights with the same input share one statistic. Features and batch axes stand in
        the order of the weight's own axes, as in `matrix`; those of a convolution are what its
        kernel sees at each place.

        Args:
          stats: a `Statistic`, or a container of them, such as ``{"norm": sum_of_squares}``.
          where: of which weights; by default those of `where`.
          mask: ``(*inputs) -> bool array`` of the tokens that count, such as
            ``lambda tokens: tokens != padding``; its shape is the beginning of an input's.
          progress: wraps the batches, to show how far it is.
          max_bytes: limit of the statistics' size.

        Returns:
          ``(params, batches) -> {path: stats}``.

        Raises:
          TypeError: ``stats`` holds something else.
        """
        check_stats(stats)
        chosen = self.where() if where is None else where
        return Capture(self.program, stats, chosen, mask, progress, max_bytes)

    def matrix(self, path: str, weight: jax.Array) -> jax.Array:
        """Return a weight as matrices, in the layout of captured statistics.

        Args:
          path: the weight's path.
          weight: an array of the parameter's shape: the weight, its mask, or its scores.

        Returns:
          Array ``[*layers, *batch, in, out]``: a layer axis of a scan, then experts or groups of a
          convolution, then what is summed over, then the rest, each flattened in the order of the
          weight's own axes.

        Raises:
          ValueError: the weight has no input features, or its uses disagree.
        """
        return layout_of(self.program, path).matrix(weight)

    def from_matrix(self, path: str, matrix: jax.Array) -> jax.Array:
        """Undo `matrix`.

        Args:
          path: the weight's path.
          matrix: array ``[*layers, *batch, in, out]``.

        Returns:
          Array of the parameter's shape.
        """
        return layout_of(self.program, path).weight(matrix)

    def segments(self, cuts: Sequence[int] | None = None) -> Segments:
        """Cut the function into consecutive parts, at the blocks that it repeats.

        A scan over stacked parameters is cut at its iterations; else the longest repeated run of
        equations with a product makes blocks, each beginning where the least is alive; so does
        what lies before and after. Parts that do the same are compiled once.

        Args:
          cuts: the places between equations to cut at instead; see `Segments.cuts`.

        Returns:
          The parts, to be run one after the other.

        Raises:
          ValueError: a place that is not between two equations.
        """
        return self._segments if cuts is None else segments_of(self.program, cuts)

    @functools.cached_property
    def _segments(self) -> Segments:  # once: what is compiled for them serves the next method, too
        return segments_of(self.program)

    def cost(self, masks: Tree | None = None) -> Cost:
        """Count the operations and bytes of all matrix products and convolutions.

        Args:
          masks: boolean masks in any container, matched by path, True = kept; or None. Packed ones
            are unpacked first.

        Returns:
          Figures for each weight, for products of two activations, and in total.
        """
        return cost_of(self.program, masks)

    def table(self) -> None:
        """Print a line for each use, and what was skipped."""
        print_uses(self.shapes, self.uses, self.skipped)

    def _chosen(self) -> list[str]:
        chosen = self.where().chosen
        return [path for path in self.paths if path in chosen]


def trace(fn: Callable[..., Any], params: Tree, *inputs: Any) -> Graph:
    """Read what a function does with each of its parameters.

    The function is traced, not run: arrays and ``jax.ShapeDtypeStruct`` serve alike, and nothing
    is compiled. Calls, ``scan``, ``while``, ``cond`` and rematerialisation are read through.

    Args:
      fn: any function of parameters and inputs that JAX can trace.
      params: parameters in any container. Leaves that are no arrays (numbers, flags, functions)
        are held as they are.
      *inputs: the other arguments; the same holds for them.

    Returns:
      A `Graph`.

    Raises:
      ValueError: ``params`` holds no array.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune
      >>> def model(params, x):
      ...     x = jax.nn.relu(x @ params["in"]["kernel"] + params["in"]["bias"])
      ...     return x @ params["out"]["kernel"].T
      >>> params = {
      ...     "in": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)},
      ...     "out": {"kernel": jnp.ones((4, 16))},
      ... }
      >>> graph = jaxprune.trace(model, params, jnp.ones((1, 8)))
      >>> for use in graph.uses:
      ...     print(use.path, use.primitive, use.contracted_axes)
      in/kernel dot_general (0,)
      in/bias add ()
      out/kernel dot_general (1,)
      >>> masks = jaxprune.make_masks(params, 0.5, where=graph.where(),
      ...                             pattern=jaxprune.NM(2, 4, axis=graph))
      >>> masks["out"]["kernel"].sum(1).tolist()
      [8, 8, 8, 8]
    """
    return Graph(read(fn, params, *inputs))
