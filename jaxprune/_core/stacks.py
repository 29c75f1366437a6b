"""Arrays that stack matrices along leading axes."""

from collections.abc import Callable
from typing import Any

import jax


def over_layers(function: Callable[..., Any], layers: int) -> Callable[..., Any]:
    """Return a function of one matrix as a function of stacks of them.

    Args:
      function: of arrays of one matrix.
      layers: how many leading axes stack matrices.

    Returns:
      The function, mapped over the leading axes of all its arguments.
    """
    for _ in range(layers):
        function = jax.vmap(function)
    return function
