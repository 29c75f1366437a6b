"""A traced model whose residual sublayers can be left out, one flag for each."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._core import paths
from jaxprune.graph import Graph
from jaxprune.types import Tree

LLAMA = r"(^|/)(o_proj|down_proj)/"
"""The projections that close attention and the feed-forward layer of the Llama family."""

_OF_A_LAYER = re.compile(r"/(kernel|weight|w|bias|b)$")
"""The last part of a path, where several parameters make a projection."""

Key = tuple[str, int | None]
"""A sublayer: its name without the layer, and its layer in a stack."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Sublayers:
    """The residual sublayers of a model; `sublayers` makes it.

    Attributes:
      graph: of the model.
      names: of the sublayers, in order of depth.
      numbers: by path of what closes them: the sublayer's number, or one for each layer of a
        parameter that stacks layers.
      axes: by path, the axis along which it stacks layers, or None.
    """

    graph: Graph
    names: tuple[str, ...]
    numbers: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, int | None]

    def __repr__(self) -> str:
        return f"Sublayers({len(self.names)}: {paths.listed(self.names, 4)})"

    def __call__(self, params: Tree, batch: Any, skip: jax.Array) -> jax.Array:
        """Run the model without the sublayers that ``skip``, bool (sublayers,), names."""
        inputs = batch if isinstance(batch, tuple) else (batch,)
        return self.graph.program.fn(self.remove(params, skip), *inputs)

    def remove(self, params: Tree, skip: Any) -> Tree:
        """Return parameters with which the skipped sublayers add nothing: what closes them is 0."""
        flags, leaves = jnp.asarray(skip), paths.flatten(params)

        def closed(path: str) -> jax.Array:
            leaf, axis = leaves[path], self.axes[path]
            gone = flags[jnp.asarray(self.numbers[path])]
            shape = [1] * leaf.ndim
            if axis is not None:
                shape[axis] = leaf.shape[axis]
            return jnp.where(gone.reshape(shape), jnp.zeros_like(leaf), leaf)

        return paths.refill(params, {path: closed(path) for path in self.numbers}, _own)


def sublayers(graph: Graph, *, where: str = LLAMA) -> Sublayers:
    """Find the residual sublayers of a model by the projections that close them.

    A sublayer adds to the residual stream what its last projection gives. With the projection's
    weights and bias at 0 it adds nothing, which is the same as leaving it out. So no model needs to
    be rewritten for `finercut`; it is the model as it was traced, scanned or not.

    Args:
      graph: of the model, `jaxprune.trace`.
      where: a regular expression that is found in the paths of those projections' weights and
        biases. Leaves of one parent make one sublayer, and so does each layer of a stack. By
        default ``o_proj`` and ``down_proj``, as the Llama family calls them.

    Returns:
      What `finercut` takes as ``fn``, with ``names``; ``remove`` gives parameters without some.

    Raises:
      ValueError: no parameter has such a path.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> from jaxprune import posttraining
      >>> def model(params, x):
      ...     for layer in params:
      ...         x = x + jnp.tanh(x @ layer["up"]["kernel"]) @ layer["down_proj"]["kernel"]
      ...     return x
      >>> def layer(scale):
      ...     return {"up": {"kernel": jnp.eye(2)}, "down_proj": {"kernel": scale * jnp.eye(2)}}
      >>> params, x = [layer(1.0), layer(0.1)], jnp.array([[1.0, -2.0]])
      >>> parts = posttraining.sublayers(jaxprune.trace(model, params, x))
      >>> parts.names
      ('0/down_proj', '1/down_proj')
      >>> ranking = posttraining.finercut(parts, params, [x], parts.names, count=1)
      >>> parts.remove(params, ranking.skip(1))[1]["down_proj"]["kernel"].tolist()
      [[0.0, 0.0], [0.0, 0.0]]

    Reference:
      Zhang et al., FinerCut: finer-grained interpretable layer pruning for large language models,
      arXiv:2405.18218.
    """
    found = [path for path in _in_order(graph) if re.search(where, path)]
    if not found:
        raise ValueError(
            f"where={where!r} is found in none of the {len(graph.paths)} parameters "
            f"({paths.listed(graph.paths)}). Name the projections whose output is added to the "
            "residual stream."
        )
    axes = {path: graph.layer_axis(path) for path in found}
    depths = {path: None if a is None else graph.shapes[path][a] for path, a in axes.items()}
    parts = {path: _layered(_OF_A_LAYER.sub("", path), depths[path]) for path in found}
    number = {key: i for i, key in enumerate(_in_depth(list(parts.values())))}
    names = tuple(name if layer is None else f"{name}[{layer}]" for name, layer in number)
    numbers = {path: tuple(number[key] for key in keys) for path, keys in parts.items()}
    return Sublayers(graph, names, numbers, axes)


def _own(path: str, leaf: Any) -> Any:
    del path
    return leaf


def _in_order(graph: Graph) -> list[str]:
    """Return the paths of parameters in the order in which the model uses them."""
    return list(dict.fromkeys(use.path for use in graph.uses))


def _layered(name: str, depth: int | None) -> list[Key]:
    return [(name, None)] if depth is None else [(name, layer) for layer in range(depth)]


def _in_depth(parts: Sequence[Sequence[Key]]) -> list[Key]:
    """Return all sublayers in order of depth: stacks that follow one another go layer by layer."""
    ordered: dict[Key, None] = {}
    for _, run in itertools.groupby(parts, key=lambda keys: (keys[0][1] is None, len(keys))):
        for keys in zip(*run, strict=True):
            ordered.update(dict.fromkeys(keys))
    return list(ordered)
