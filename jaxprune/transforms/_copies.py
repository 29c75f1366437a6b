"""State leaves that an optimizer copies from the parameters.

Averages, float32 masters and the like hold the weights a second time: left dense, they bring
pruned weights back. Which leaves they are is read from the jaxpr of the optimizer's ``init``.
"""

from typing import Any

import jax
import optax

from jaxprune._core import paths
from jaxprune.types import Tree

_PASS_ON = {"copy", "copy_p", "convert_element_type", "optimization_barrier", "reshard"}
_CALLS = ("jaxpr", "call_jaxpr")


def copied_leaves(inner: optax.GradientTransformation, params: Tree) -> dict[str, str]:
    """Return ``{path in the inner state: path of the parameter it is a copy of}``."""
    leaves, treedef = jax.tree.flatten(params)
    arrays = [index for index, leaf in enumerate(leaves) if hasattr(leaf, "dtype")]

    def init(given: list[Any]) -> Any:  # a model's functions stay what they are
        full = list(leaves)
        for index, array in zip(arrays, given, strict=True):
            full[index] = array
        return inner.init(treedef.unflatten(full))

    shapes = jax.eval_shape(lambda xs: xs, [leaves[index] for index in arrays])
    closed, out = jax.make_jaxpr(init, return_shape=True)(shapes)
    named = paths.flatten(params)
    names = [path for path, leaf in named.items() if hasattr(leaf, "dtype")]
    sources = _sources(closed.jaxpr, dict(zip(closed.jaxpr.invars, names, strict=True)))
    found = dict(zip(_paths_of(out), sources, strict=True))
    return {path: source for path, source in found.items() if source is not None}


def _paths_of(tree: Tree) -> list[str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(key_path) for key_path, _ in leaves]


def _sources(jaxpr: Any, known: dict[Any, str]) -> list[str | None]:
    """Return, per output of a jaxpr, the input that it repeats."""
    known = dict(known)
    for eqn in jaxpr.eqns:
        inner = next((eqn.params[name] for name in _CALLS if name in eqn.params), None)
        if eqn.primitive.name in _PASS_ON:
            found = [_lookup(known, var) for var in eqn.invars]
        elif inner is not None and len(getattr(inner, "jaxpr", inner).invars) == len(eqn.invars):
            body = getattr(inner, "jaxpr", inner)
            given = {v: _lookup(known, arg) for v, arg in zip(body.invars, eqn.invars, strict=True)}
            found = _sources(body, {v: s for v, s in given.items() if s is not None})
        else:
            continue
        known |= {v: s for v, s in zip(eqn.outvars, found, strict=False) if s is not None}
    return [_lookup(known, var) for var in jaxpr.outvars]


def _lookup(known: dict[Any, str], var: Any) -> str | None:
    return None if hasattr(var, "val") else known.get(var)


def zero_copies(inner_state: Tree, copies: dict[str, str], masks: dict[str, jax.Array]) -> Tree:
    """Set the pruned weights of all copies in an optimizer's state to zero."""
    if not any(source in masks for source in copies.values()):
        return inner_state

    def one(key_path: Any, leaf: Any) -> Any:
        source = copies.get(jax.tree_util.keystr(key_path))
        if source not in masks:
            return leaf
        return jax.numpy.where(masks[source], leaf, jax.numpy.zeros_like(leaf))

    return jax.tree_util.tree_map_with_path(one, inner_state)
