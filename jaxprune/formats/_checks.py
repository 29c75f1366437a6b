"""What the formats refuse, and what they do where nothing can be raised."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune._core.checks import debug_check


def as_size(owner: str, name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return an argument as an int of a range, or raise an error that names it."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{owner}: {name} must be an integer, got {value!r}.")
    if number < least or (most is not None and number > most):
        allowed = f"{least} or more" if most is None else f"in [{least}, {most}]"
        raise ValueError(f"{owner}: {name} must be {allowed}, got {number}.")
    return number


def weight_and_mask(
    owner: str, w: Any, mask: Any, path: str | None
) -> tuple[jax.Array, jax.Array | None]:
    """Return a weight and its mask as arrays, checked as far as their types and shapes go."""
    w = jnp.asarray(w)
    if w.ndim < 2:
        raise ValueError(
            f"{owner}: {called(path)} has shape {w.shape}; a format holds matrices "
            "[..., in, out]. Leave vectors dense."
        )
    if not jnp.issubdtype(w.dtype, jnp.floating):
        raise TypeError(
            f"{owner}: {called(path)} has dtype {w.dtype}; a format holds floating-point "
            "weights. Convert it with astype first."
        )
    if mask is None:
        return w, None
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_ or mask.shape != w.shape:
        raise ValueError(
            f"{owner}: mask must be boolean of the shape {w.shape} of {called(path)}, got "
            f"{mask.dtype} of shape {mask.shape}. True = kept; a packed mask is unpacked first."
        )
    return w, mask


def outside(w: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Return whether something outside the mask is not zero: NaN differs from 0, too."""
    return jnp.asarray(False) if mask is None else jnp.any((w != 0) & ~mask)


def refuse_outside(owner: str, found: jax.Array, w: Any, mask: Any, path: str | None) -> None:
    """Raise if something outside the mask is not zero."""

    def text() -> str:
        count, first = places((np.asarray(w) != 0) & ~np.asarray(mask))
        return (
            f"{owner}: {called(path)} has {count} values outside its mask that are not zero, the "
            f"first at index {first}. Pass jaxprune.apply_masks(params, masks), or another mask."
        )

    refuse(found, text)


def refuse(found: jax.Array, text: Callable[[], str]) -> None:
    """Raise an error if a flag is set; inside ``jit``, only `jaxprune.debug_checks` can tell."""
    if isinstance(found, Tracer):
        debug_check(~found, "a weight does not fit its format: see from_dense")
    elif found:
        raise ValueError(text())


def places(bad: np.ndarray) -> tuple[int, tuple[int, ...]]:
    """Return how many entries are True, and the index of the first."""
    where = np.argwhere(bad)
    return len(where), tuple(map(int, where[0]))


def poisoned(values: jax.Array, bad: jax.Array) -> jax.Array:
    """Return values, all NaN if something is wrong: inside ``jit`` nothing can be raised."""
    return jnp.where(bad, jnp.asarray(jnp.nan, values.dtype), values)


def called(path: str | None) -> str:
    """Return how an error calls a weight."""
    return "w" if path is None else repr(path)


def nbytes(leaves: Any) -> int:
    """Return the bytes of the leaves of a tree, of shapes as of arrays."""
    sizes = [leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(leaves)]
    return int(sum(sizes))


def layer_of(w: Any, index: Any) -> Any:
    """Return one layer, or a range of layers, of a format that stacks layers."""
    if len(w.shape) < 3:
        raise IndexError(
            f"{type(w).__name__} of shape {w.shape} stacks no layers; indexing takes layers. "
            "Use todense() to index a matrix."
        )
    return jax.tree.map(lambda leaf: leaf[index], w)


def show(w: Any, *settings: str) -> str:
    """Return ``Name(shape, dtype, settings)``."""
    parts = [str(list(w.shape)), jnp.dtype(w.dtype).name, *settings]
    return f"{type(w).__name__}({', '.join(parts)})"
