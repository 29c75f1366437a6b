"""``where``: which leaves of a tree may be pruned."""

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxprune._core import paths

Where = Callable[[str, Any], bool] | str | Any
"""A predicate on ``(path, leaf)``, a regular expression searched in the path, or a tree of bools."""

_NOT_KERNELS = {"bias", "b", "scale", "offset", "gamma", "beta", "mean", "var", "embedding"}
_NOT_LAYERS = re.compile(r"embed|norm|(^|[^a-z])(bn|ln)(\d|[^a-z]|$)|(^|_)bias($|_)", re.IGNORECASE)


def default_where(path: str, leaf: Any) -> bool:
    """Select the kernels of matrix products and convolutions, by name and rank.

    A floating-point leaf of rank 2 or more, unless its name says that it is a bias (attention
    biases have two axes), the scale of a normalisation layer, or an embedding. A parameter's use
    cannot be read from its name with certainty; pass ``where=`` for trees with other names.
    """
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is None or dtype is None or len(shape) < 2 or not jnp.issubdtype(dtype, jnp.floating):
        return False
    parts = path.split("/")
    return parts[-1] not in _NOT_KERNELS and not any(_NOT_LAYERS.search(part) for part in parts)


def _predicate(tree: Any, where: Where) -> Callable[[str, Any], bool]:
    if isinstance(where, str):
        pattern = re.compile(where)
        return lambda path, leaf: pattern.search(path) is not None
    if callable(where):
        return where
    chosen = paths.flatten(where)
    missing = [path for path in paths.flatten(tree) if path not in chosen]
    unknown = [path for path in chosen if path not in paths.flatten(tree)]
    if missing or unknown:
        raise ValueError(
            "where does not match the parameters: "
            f"no entry for {paths.listed(missing) or 'none'}; "
            f"entries without a parameter: {paths.listed(unknown) or 'none'}. "
            "Give a tree of bools with the parameters' structure, a regular expression, "
            "or a function of (path, leaf)."
        )
    return lambda path, leaf: bool(chosen[path])


def select(tree: Any, where: Where) -> dict[str, Any]:
    """Return ``{path: leaf}`` of the prunable leaves, in tree order.

    A tree without array leaves selects nothing silently: ``optax.tree_map_params`` initialises a
    transform on placeholders.

    Raises:
      ValueError: nothing is selected, or ``where`` is a tree that does not match.
      TypeError: a selected leaf is not a floating-point array.
    """
    leaves = {p: x for p, x in paths.flatten(tree).items() if hasattr(x, "dtype")}
    predicate = _predicate(tree, where)
    chosen = {path: leaf for path, leaf in leaves.items() if predicate(path, leaf)}
    if leaves and not chosen:
        raise ValueError(
            f"where={_shown(where)} selects none of the {len(leaves)} parameters "
            f"({paths.listed(leaves)}). Pass a regular expression that is found in a path, "
            "a function of (path, leaf), or a tree of bools."
        )
    for path, leaf in chosen.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"where={_shown(where)} selects {path!r} of dtype {leaf.dtype}: only "
                "floating-point parameters can be pruned. Exclude it with where=."
            )
    return chosen


def _shown(where: Where) -> str:
    if isinstance(where, str):
        return repr(where)
    return getattr(where, "__name__", type(where).__name__)
