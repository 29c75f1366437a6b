"""What the solvers share: the Gram matrix of a weight's inputs, checked and factorised."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.patterns import NM, Unstructured
from jaxprune.posttraining.matrix import Inputs, Target

_RAISES = 8  # times that damping is raised: from any start it passes the mean of the diagonal
_LEAST = 1e-6  # what damping is raised to from 0


def checked_gram(name: str, weight: jax.Array, inputs: Inputs, target: Target) -> jax.Array:
    """Return the sum of x xᵀ as float32, or raise an error that says what does not fit.

    Raises:
      ValueError: a weight that is no matrix, no Gram matrix or one of another shape, or groups that
        do not fit.
      TypeError: a pattern of another kind.
    """
    if weight.ndim != 2:
        raise ValueError(
            f"{name} prunes one matrix (in, out), got a weight of shape {weight.shape}. Flatten "
            "what it contracts to one axis, and jax.vmap over stacked layers."
        )
    if inputs.gram is None:
        raise ValueError(
            f"{name} needs inputs.gram, got None. It is the sum of x xᵀ over the inputs, (in, in)."
        )
    wanted = (weight.shape[0],) * 2
    if inputs.gram.shape != wanted:
        raise ValueError(
            f"inputs.gram has shape {inputs.gram.shape}; a weight of shape {weight.shape} needs "
            f"{wanted}: the sum of x xᵀ over the inputs."
        )
    pattern: Any = target.pattern
    if isinstance(pattern, NM):
        dataclasses.replace(pattern, axis=0).check("weight (in, out)", weight.shape)
    elif not isinstance(pattern, Unstructured):
        raise TypeError(
            f"{name} cannot serve pattern={pattern!r}. It prunes to Unstructured() or NM(n, m)."
        )
    return inputs.gram.astype(jnp.float32)


def checked_number(name: str, value: Any, least: float, *, whole: bool = False) -> None:
    """Raise an error that names the argument unless it is a finite number from ``least`` on.

    Raises:
      TypeError: no number, or no integer where it has to be ``whole``.
      ValueError: out of range.
    """
    kind = "an integer" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise TypeError(f"{name} must be {kind}, got {value!r} of type {type(value).__name__}.")
    if not least <= value < float("inf"):
        raise ValueError(f"{name} must be {kind}, {least:g} or more, got {value!r}.")


def damped(gram: jax.Array, damping: Any) -> jax.Array:
    """Add ``damping`` times the mean of the diagonal to the diagonal."""
    size = gram.shape[0]
    return gram + damping * jnp.mean(jnp.diagonal(gram)) * jnp.eye(size, dtype=gram.dtype)


def normalised(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scale a Gram matrix to a diagonal of ones; return it and the norms of the inputs."""
    norm = jnp.sqrt(jnp.diagonal(gram)) + 1e-8
    return gram / norm[:, None] / norm[None, :], norm


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiply in full float32, which accelerators do not by themselves."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


class Factor(NamedTuple):
    """A factorisation ``upper upperᵀ = gram + damping · mean(diagonal) · I``."""

    upper: jax.Array  # (in, in), upper triangular; NaN if the Gram matrix has NaN or is negative
    damping: jax.Array  # (), as a share of the mean of the diagonal


def upper_factor(gram: jax.Array, damping: float) -> Factor:
    """Factorise a Gram matrix, with ten times the damping as often as rounding makes that fail."""
    # The Cholesky factor of the matrix in reverse order, reversed, is upper.
    reverse = jnp.flip(gram)
    least = jnp.finfo(jnp.float32).eps * jnp.mean(jnp.diagonal(gram))
    finite = jnp.all(jnp.isfinite(gram))

    def fails(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        number, _, lower = state
        pivots = jnp.diagonal(lower)
        return finite & (number <= _RAISES) & ~jnp.all(pivots * pivots > least)

    def attempt(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        number, used, _ = state
        used = jnp.where(number == 0, used, jnp.maximum(10.0 * used, _LEAST))
        return number + 1, used, lax.linalg.cholesky(damped(reverse, used), symmetrize_input=False)

    first = jnp.int32(0), jnp.float32(damping), jnp.full_like(reverse, jnp.nan)
    _, used, lower = lax.while_loop(fails, attempt, first)
    return Factor(jnp.flip(lower), used)
