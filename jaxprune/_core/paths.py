"""Names of leaves: one string per leaf, the same in every container."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

Tree = Any

_BOX = jax.tree_util.GetAttrKey("value")


def path_of(key_path: tuple[Any, ...]) -> str:
    """Return the name of a leaf, as in ``encoder/Dense_0/kernel``.

    NNX variables and boxed Linen parameters end in an attribute ``value``, which names the box and
    not the parameter: it is dropped, so that one regular expression serves every framework. A key
    of a dict is kept, as the ``value`` beside an attention's ``query`` and ``key``.
    """
    if len(key_path) > 1 and key_path[-1] == _BOX:
        key_path = key_path[:-1]
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def flatten(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Return ``{path: leaf}`` in tree order; ``None`` and ``optax.MaskedNode`` hold no leaf."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    named = {path_of(key_path): leaf for key_path, leaf in leaves}
    if len(named) != len(leaves):
        names = [path_of(key_path) for key_path, _ in leaves]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"two leaves of the tree share one path: {twice}; rename one of the keys.")
    return named


def _masked(path: str, leaf: Any) -> optax.MaskedNode:
    del path, leaf
    return optax.MaskedNode()


def refill(
    tree: Tree, leaves: Mapping[str, Any], otherwise: Callable[[str, Any], Any] = _masked
) -> Tree:
    """Return ``tree`` with the leaf at each path replaced by ``leaves[path]``.

    Leaves whose path is not in ``leaves`` become ``otherwise(path, leaf)``, which by default is
    ``optax.MaskedNode()``: optax, ``jax.tree`` and checkpoints all see "nothing here".
    """

    def one(key_path: tuple[Any, ...], leaf: Any) -> Any:
        path = path_of(key_path)
        return leaves[path] if path in leaves else otherwise(path, leaf)

    return jax.tree_util.tree_map_with_path(one, tree)


def owner_of(path: str, shape: tuple[int, ...], owners: Mapping[str, Any]) -> str | None:
    """Return the weight to which a leaf of an optimizer's state belongs, by suffix and shape.

    Parameters that are one array have an empty path, which ends every other.

    Args:
      path: of the leaf.
      shape: of the leaf.
      owners: arrays, or shapes and dtypes, of the weights by path.
    """
    found = [
        name
        for name, owner in owners.items()
        if owner.shape == shape and (name in ("", path) or path.endswith(f"/{name}"))
    ]
    return max(found, key=len, default=None)


def listed(names: Any, limit: int = 8) -> str:
    """Return a few names for an error message."""
    names = [str(name) for name in names]
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
