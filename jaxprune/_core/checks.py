"""Checks of values inside jit: asked for, since each one takes jit its fast way of calling."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import checkify

_ASKED = jax.make_user_context(default_value=False)  # part of what jax caches a program by


@contextlib.contextmanager
def debug_checks() -> Iterator[None]:
    """Check values inside ``jit`` too, where ``jax.experimental.checkify`` reports them.

    Outside ``jit``, NaN scores and the like always raise. Inside, a check leaves an effect in the
    program even without ``checkify`` around it, and jax then calls the program through Python:
    0.3 ms instead of 0.07 on a fast machine. So it is asked for.

    Returns:
      A context manager; programs traced inside it hold the checks.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> from jax.experimental import checkify
      >>> choose = jax.jit(lambda scores: jaxprune.top_k_mask(scores, 1))
      >>> with jaxprune.debug_checks():
      ...     checked = checkify.checkify(choose, errors=checkify.user_checks)
      ...     error, mask = checked(jnp.array([1.0, jnp.nan]))
      >>> "the array of scores has 1 NaN entries" in error.get()
      True
    """
    with _ASKED(True):
        yield


def debug_check(holds: jax.Array, message: str, **values: Any) -> None:
    """Report through ``checkify`` that a condition fails, inside `debug_checks`."""
    if _ASKED.value:
        checkify.debug_check(holds, message, **values)
