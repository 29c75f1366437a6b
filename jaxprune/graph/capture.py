"""``capture``: statistics of every weight's input, from batches of data."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import filesize
from rich.console import Console
from rich.progress import track

from jaxprune._core import paths
from jaxprune.graph.evaluate import Probes, evaluate
from jaxprune.graph.plan import Plan, plan_of
from jaxprune.graph.program import Program, arrays_of, held, read, refilled
from jaxprune.graph.rows import rows_of
from jaxprune.graph.statistics import Statistic
from jaxprune.graph.tokens import rows_counted
from jaxprune.graph.uses import Skipped
from jaxprune.types import Tree

Where = Callable[[str, Any], bool]
Progress = Callable[[Iterable[Any]], Iterable[Any]]


def bar(batches: Iterable[Any]) -> Iterable[Any]:
    """Show a progress bar over batches, in a terminal only.

    Args:
      batches: any iterable.

    Returns:
      The same batches.

    Example:
      >>> from jaxprune import graph
      >>> list(graph.bar([1, 2]))
      [1, 2]
    """
    if Console().is_terminal:
        return track(batches, "capturing", transient=True)
    return batches


@dataclasses.dataclass(frozen=True, repr=False)
class Capture:
    """Gathers statistics of the inputs of weights; `Graph.capture` makes it.

    Attributes:
      program: the traced function.
      stats: a statistic, or a container of them.
      where: ``(path, leaf) -> bool``: of which weights.
      mask: ``(*inputs) -> bool array`` of the tokens that count, or None for all.
      progress: wraps the batches.
      max_bytes: limit of the statistics' size.
    """

    program: Program
    stats: Any
    where: Where
    mask: Callable[..., jax.Array] | None
    progress: Progress
    max_bytes: int

    @functools.cached_property
    def plan(self) -> Plan:
        """What is taken where."""
        return self._plan(self.program)

    @property
    def paths(self) -> tuple[str, ...]:
        """Weights that have statistics."""
        return tuple(self.plan.weights)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Weights that were asked for and have no statistics, and why."""
        return self.plan.skipped

    def __call__(self, params: Tree, batches: Iterable[Any]) -> dict[str, Any]:
        """Run all batches and return the statistics of each weight.

        Args:
          params: parameters, as they were traced.
          batches: each a tuple of the function's inputs, or the only input. Shapes may differ from
            those that were traced; each new one is compiled once.

        Returns:
          ``{path: stats}``, with a result in place of each statistic, ``[*layers, *batch, ...]``.

        Raises:
          ValueError: no batch, parameters or inputs that do not fit, statistics beyond
            ``max_bytes``, an activation that is not finite, or a mask that cannot be followed.
        """
        total: Any = None
        steps: dict[Any, Callable[..., Any]] = {}
        for batch in self.progress(batches):
            inputs = batch if isinstance(batch, tuple) else (batch,)
            leaves, arrays = arrays_of(params, inputs)
            key = tuple(map(_aval, (*leaves, *arrays))), repr(held(inputs))
            if key not in steps:
                take = self._taken(params, inputs)
                total = self._started(take, leaves, arrays) if total is None else total
                steps[key] = adding(self.stats, take)
            total = steps[key](total, leaves, arrays)
        if total is None:
            raise ValueError("batches is empty. Give at least one batch of the function's inputs.")
        self._refuse_infinite(total)
        return self._finished(total)

    def _plan(self, program: Program) -> Plan:
        return plan_of(program, lambda path: self.where(path, program.params[path]))

    def _taken(self, params: Tree, inputs: tuple[Any, ...]) -> Callable[..., Any]:
        """Return ``(arrays of params, of inputs) -> statistics`` of one batch."""
        program = self._program(params, inputs)
        plan = self._plan(program)

        def take(leaves: Sequence[Any], arrays: Sequence[Any]) -> Any:
            return taken(program, plan, self.stats, self.mask, inputs, leaves, arrays)[1]

        return take

    def _started(self, take: Callable[..., Any], *args: Any) -> Any:
        """Return the statistics of no tokens."""
        shapes = jax.eval_shape(take, *args)
        self._refuse_large(shapes)
        return of_no_tokens(shapes)

    def _program(self, params: Tree, inputs: tuple[Any, ...]) -> Program:
        leaves, arrays = arrays_of(params, inputs)
        known = [*self.program.params.values(), *self.program.inputs]
        same = [_aval(x) for x in (*leaves, *arrays)] == [_aval(x) for x in known]
        if same and repr(held(inputs)) == repr(self.program.held):
            return self.program
        program = read(self.program.fn, params, *inputs)
        if list(program.params) != list(self.program.params):
            missing = [path for path in self.program.params if path not in program.params]
            unknown = [path for path in program.params if path not in self.program.params]
            raise ValueError(
                "params are not those that were traced: without "
                f"{paths.listed(missing) or 'none'}, with {paths.listed(unknown) or 'none'} "
                "instead. Pass the same tree to trace and to capture."
            )
        return program

    def _refuse_large(self, shapes: Mapping[str, Any]) -> None:
        sizes = {
            path: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(raw))
            for path, raw in shapes.items()
        }
        total = sum(sizes.values())
        if total > self.max_bytes:
            largest = sorted(sizes, key=lambda path: -sizes[path])
            raise ValueError(
                f"the statistics take {filesize.decimal(total)}, more than max_bytes="
                f"{self.max_bytes:,}; the largest are those of {paths.listed(largest, 3)}. "
                "Capture fewer weights at a time with where=, or raise max_bytes."
            )

    def _refuse_infinite(self, total: Mapping[str, Any]) -> None:
        bad = [path for path, raw in total.items() if not _finite(raw)]
        if bad:
            raise ValueError(
                f"the input of {paths.listed(bad)} has NaN or infinite values. Look at the data "
                "and the parameters of what comes before the first of them."
            )

    def _finished(self, total: Mapping[str, Any]) -> dict[str, Any]:
        some, structure = jax.tree.flatten(self.stats, is_leaf=_is_statistic)
        return {
            path: jax.tree.unflatten(
                structure, [s.finish(r) for s, r in zip(some, raw, strict=True)]
            )
            for path, raw in total.items()
        }


def of_no_tokens(shapes: Any) -> Any:
    """Return raw statistics of no tokens, by their shapes."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def adding(stats: Any, take: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``(total, *batch) -> total`` as one program, which adds one batch's statistics.

    Args:
      stats: statistics in any container.
      take: ``(*batch) -> {path: raw statistics}``.
    """
    some = _leaves(stats)

    def step(total: Any, *batch: Any) -> Any:
        return {
            path: [s.merge(a, b) for s, a, b in zip(some, total[path], raw, strict=True)]
            for path, raw in take(*batch).items()
        }

    return jax.jit(step, donate_argnums=0)


def taken(
    program: Program,
    plan: Plan,
    stats: Any,
    mask: Callable[..., jax.Array] | None,
    inputs: tuple[Any, ...],
    leaves: Sequence[Any],
    arrays: Sequence[Any],
) -> tuple[list[Any], dict[str, list[Any]]]:
    """Run the function once; return its outputs, and raw statistics by path.

    Args:
      program: the traced function.
      plan: what to take.
      stats: statistics in any container.
      mask: as in `Capture`.
      inputs: one batch, for its structure.
      leaves: arrays of the parameters.
      arrays: arrays of the batch.
    """
    some = _leaves(stats)
    counted = None if mask is None else mask(*refilled(inputs, arrays))

    def take(number: int, eqn: Any, operands: Sequence[Any]) -> list[Any]:
        probe = plan.probes[number]
        rows = rows_of(probe.use, eqn, operands)
        values, kept = rows.values, jnp.ones(rows.values.shape[:-1], bool)
        if rows.chosen is not None:
            kept = kept & rows.chosen
        if counted is not None:
            tokens = rows_counted(probe, counted, arrays, rows.token_dims)
            kept = kept & tokens.reshape((1,) * (kept.ndim - 1) + (-1,))
        if rows.chosen is not None or counted is not None:
            values = jnp.where(kept[..., None], values, jnp.zeros((), values.dtype))
        return [statistic.take(values, kept) for statistic in some]

    def merge(number: int, a: list[Any], b: list[Any]) -> list[Any]:
        del number
        return [s.merge(x, y) for s, x, y in zip(some, a, b, strict=True)]

    probes = Probes(plan.sites(), take, merge, {n: p.stacked for n, p in enumerate(plan.probes)})
    outputs, records = evaluate(program.body, [*leaves, *arrays], probes)
    return outputs, {path: _combined(parts, records, merge) for path, parts in plan.weights.items()}


def _combined(parts: Any, records: Mapping[int, Any], merge: Callable[..., Any]) -> list[Any]:
    members = [
        functools.reduce(lambda a, b: merge(0, a, b), [records[n] for n in numbers])
        for numbers in parts.members
    ]
    if not parts.is_stack:
        return members[0]
    return jax.tree.map(lambda *raws: jnp.stack(raws), *members)


def check_stats(stats: Any) -> None:
    """Raise unless ``stats`` holds statistics and nothing else."""
    some = jax.tree.leaves(stats, is_leaf=_is_statistic)
    wrong = [item for item in some if not _is_statistic(item)]
    if wrong or not some:
        shown = repr(wrong[0]) if wrong else repr(stats)
        raise TypeError(
            "stats must be a Statistic, or a container of them, such as "
            f"graph.statistics.gram; got {shown}."
        )


def _is_statistic(item: Any) -> bool:
    return isinstance(item, Statistic)


def _leaves(stats: Any) -> list[Statistic]:
    return jax.tree.leaves(stats, is_leaf=_is_statistic)


def _aval(leaf: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    return tuple(leaf.shape), np.dtype(leaf.dtype)


def _finite(raw: Any) -> bool:
    floats = [x for x in jax.tree.leaves(raw) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return all(bool(jnp.all(jnp.isfinite(x))) for x in floats)
