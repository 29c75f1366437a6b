"""``where``: which leaves of a tree may be pruned."""

import re
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._core import paths

Predicate = Callable[[str, Any], bool]
Where = Predicate | str | Any
"""A predicate on ``(path, leaf)``, a regular expression found in the path, or a tree of bools."""

# The last part of the path of a bias, the scale of a normalisation, or one learned token.
_NOT_KERNELS = re.compile(
    r"^b_?[a-z]?\d*$"
    r"|^(mean|var|cls)$"
    r"|(^|_)(scale|offset|gamma|beta|tokens?)$",
)
# Any part of the path of an embedding, a normalisation or a bias.
_NOT_LAYERS = re.compile(
    r"embed|(^|[^a-z])embs?([^a-z]|$)|^(wte|wpe|pos|positions?)$"
    r"|norm|(^|[^a-z])(bn|gn|ln|rms)([^a-z]|$)"
    r"|(^|_)bias(_|$)",
    re.IGNORECASE,
)


def default_where(path: str, leaf: Any) -> bool:
    """Select the kernels of matrix products and convolutions, by rank and name.

    They are the floating-point leaves of rank 2 or more that are called ``kernel``, as Flax does,
    or whose path does not speak of a bias (those of attention have two axes), of a normalisation,
    or of an embedding. That serves Flax Linen, NNX and Haiku.

    What a name does not tell cannot be known. Equinox calls every leaf ``weight``: an embedding is
    left out under ``embed`` or ``tok_emb``, but selected as a member of a list or of
    ``Sequential``; so is a ``LayerNorm`` of several axes. Matrices that enter no product, such as
    the state matrix of a state-space layer, are selected too. A token embedding that is also the
    output layer is left out. Pass ``where=`` for such trees.

    Args:
      path: name of the leaf, as in ``encoder/Dense_0/kernel``.
      leaf: the leaf; what is no array is not selected.

    Returns:
      Whether the leaf is prunable.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> kernel = jnp.ones((4, 4))
      >>> names = ("Dense_0/kernel", "Embed_0/embedding", "attention/bias", "head/kernel")
      >>> [jaxprune.default_where(name, kernel) for name in names]
      [True, False, False, True]
      >>> def all_but_the_head(path, leaf):
      ...     return jaxprune.default_where(path, leaf) and "head" not in path
      >>> all_but_the_head("head/kernel", kernel)
      False
    """
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is None or dtype is None or len(shape) < 2 or not jnp.issubdtype(dtype, jnp.floating):
        return False
    parts = path.split("/")
    if parts[-1] == "kernel":  # of a patch embedding, too, which is a convolution
        return True
    return not (_NOT_KERNELS.search(parts[-1]) or any(_NOT_LAYERS.search(p) for p in parts))


def _predicate(tree: Any, where: Where) -> Predicate:
    if isinstance(where, str):
        return _found_by(where)
    if callable(where) and not _is_tree_of_bools(where):
        return cast(Predicate, where)
    chosen, leaves = paths.flatten(where), paths.flatten(tree)
    missing = [path for path in leaves if path not in chosen]
    unknown = [path for path in chosen if path not in leaves]
    if missing or unknown:
        raise ValueError(
            "where does not match the parameters: "
            f"no entry for {paths.listed(missing) or 'none'}; "
            f"entries without a parameter: {paths.listed(unknown) or 'none'}. "
            "Give a tree of bools with the parameters' structure, a regular expression, "
            "or a function of (path, leaf)."
        )
    for path, value in chosen.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(
                f"where has {value!r} at {path!r}, of type {type(value).__name__}. A tree given as "
                "where holds one bool for each parameter, True = prunable."
            )
    return lambda path, leaf: bool(chosen[path])


def _found_by(regex: str) -> Predicate:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise ValueError(
            f"where={regex!r} is not a regular expression: {error}. It is searched in paths such "
            "as 'encoder/Dense_0/kernel'."
        ) from None
    return lambda path, leaf: pattern.search(path) is not None


def _is_tree_of_bools(where: Any) -> bool:
    """Tell a tree from a predicate: a module that holds bools can be called, too."""
    leaves = jax.tree.leaves(where)
    return bool(leaves) and all(isinstance(leaf, bool | np.bool_) for leaf in leaves)


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
    if callable(where) and not _is_tree_of_bools(where):
        return getattr(where, "__name__", type(where).__name__)
    return "a tree of bools"
