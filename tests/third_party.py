"""Other people's code in a suite that is stricter than they are.

optax's adam raises a float to an integer power and flax's layers add a bias of rank 1: both are
refused by the strict promotion that this suite runs with. Ours stays strict, theirs need not be.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import jax
import optax

P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """Promote dtypes and ranks as jax does for its users."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def leniently(function: Callable[P, T]) -> Callable[P, T]:
    """The same function, traced leniently."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with lenient():
            return function(*args, **kwargs)

    return call


def inner(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, lenient inside: the transform that wraps it stays strict."""
    tx = optax.with_extra_args_support(tx)
    return optax.GradientTransformationExtraArgs(leniently(tx.init), leniently(tx.update))
