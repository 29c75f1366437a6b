"""A traced function with what was read from it: the ground of everything that the graph offers."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from jaxprune._core import paths
from jaxprune.graph import _jax
from jaxprune.graph.provenance import Provenance
from jaxprune.graph.rules import rule_of
from jaxprune.graph.uses import Skipped, WeightUse
from jaxprune.graph.values import Site
from jaxprune.graph.walk import Context, walk
from jaxprune.types import Tree


@dataclasses.dataclass(frozen=True, repr=False)
class Program:
    """A function of parameters and inputs as a jaxpr.

    Attributes:
      fn: the function.
      body: its jaxpr. The first inputs are the parameters', in tree order.
      params: shape and dtype of each parameter, by path.
      inputs: shape and dtype of each array among the inputs.
      held: what stands among the inputs and is no array; it is part of the program.
      uses: every use of a parameter, in the order of the equations.
      skipped: what could not be followed.
      trained: for each product, of how many operands training needs the gradient.
    """

    fn: Callable[..., Any]
    body: _jax.Body
    params: Mapping[str, jax.ShapeDtypeStruct]
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    held: list[Any]
    uses: tuple[WeightUse, ...]
    skipped: tuple[Skipped, ...]
    trained: Mapping[Site, int]

    def equations(self) -> dict[Site, Any]:
        """Return the equations that use a parameter, by where they stand."""
        wanted = {use.site for use in self.uses}
        return {site: eqn for site, eqn, _ in _jax.equations(self.body) if site in wanted}

    def uses_of(self, path: str) -> list[WeightUse]:
        """Return the uses of a parameter.

        Raises:
          ValueError: there is no such parameter.
        """
        if path not in self.params:
            raise ValueError(
                f"the graph has no parameter {path!r}; it has {paths.listed(self.params)}. "
                "Trace the function with the same tree of parameters."
            )
        return [use for use in self.uses if use.path == path]


def arrays_of(params: Tree, inputs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return the arrays among parameters and inputs, in tree order."""
    of_params = [leaf for leaf in jax.tree.leaves(params) if _jax.is_array(leaf)]
    of_inputs = [leaf for leaf in jax.tree.leaves(tuple(inputs)) if _jax.is_array(leaf)]
    return of_params, of_inputs


def refilled(tree: Tree, arrays: Iterable[Any]) -> Tree:
    """Return a tree with other arrays; the leaves that are none stay."""
    rest = iter(arrays)
    return jax.tree.map(lambda leaf: next(rest) if _jax.is_array(leaf) else leaf, tree)


def held(tree: Tree) -> list[Any]:
    """Return what is held as it is: the leaves that are no arrays."""
    return [leaf for leaf in jax.tree.leaves(tree) if not _jax.is_array(leaf)]


def read(fn: Callable[..., Any], params: Tree, *inputs: Any) -> Program:
    """Trace a function and read what it does with each parameter."""
    named = [path for path, leaf in paths.flatten(params).items() if _jax.is_array(leaf)]
    if not named:
        raise ValueError("params holds no array. Pass the tree of parameters that fn takes first.")

    def flat(*arrays: Any) -> Any:
        own, others = refilled((params, inputs), arrays)
        return fn(own, *others)

    of_params, of_inputs = arrays_of(params, inputs)
    body = _jax.jaxpr_of(flat, [_abstract(x) for x in (*of_params, *of_inputs)])
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in body.jaxpr.invars]
    known = dict(zip(named, shapes, strict=False))
    reader = Provenance(rule_of)
    values = [reader.parameter(path, leaf.shape) for path, leaf in known.items()]
    rest = shapes[len(known) :]
    values += [reader.input(i, leaf.shape) for i, leaf in enumerate(rest)]
    walk(reader, body, values, Context())
    return Program(
        fn=fn,
        body=body,
        params=known,
        inputs=tuple(rest),
        held=held(inputs),
        uses=tuple(reader.uses),
        skipped=tuple(reader.skipped + _unused(known, reader)),
        trained=reader.trained_sites,
    )


def _abstract(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _unused(known: Mapping[str, Any], reader: Provenance) -> list[Skipped]:
    seen = {use.path for use in reader.uses} | {entry.path for entry in reader.skipped}
    reason = "no equation that reaches an output uses it with data"
    return [
        Skipped(*reader.lost.get(path, (path, "", (), reason)))
        for path in known
        if path not in seen
    ]
