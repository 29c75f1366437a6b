"""Go through the leaves of a tree, past the places that hold none."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxprune._core import paths
from jaxprune.types import Tree


def is_absent(node: Any) -> bool:
    """Tell whether a node stands for "nothing here" (``None`` or ``optax.MaskedNode()``)."""
    return node is None or isinstance(node, optax.MaskedNode)


def map_with_path(fn: Callable[..., Any], params: Tree, *rest: Tree) -> Tree:
    """Return ``fn(path, leaf, *rest)`` for each leaf of ``params``; absent leaves pass through.

    The trees in ``rest`` may hold a leaf where ``params`` has none; it is ignored.
    """

    def one(key_path: tuple[Any, ...], leaf: Any, *others: Any) -> Any:
        return leaf if is_absent(leaf) else fn(paths.path_of(key_path), leaf, *others)

    return jax.tree_util.tree_map_with_path(one, params, *rest, is_leaf=is_absent)
