"""The order in which a compiled program computes what does not depend on each other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer


def once_there(value: Any, other: jax.Array) -> Any:
    """Return a value, which the program has once another is there.

    Inside ``shard_map`` the order is left to the compiler: the value would take on the other's
    mesh axes.
    """
    if not isinstance(other, Tracer) or jax.sharding.get_abstract_mesh().manual_axes:
        return value
    return lax.optimization_barrier((value, lax.stop_gradient(other)))[0]


def after(mask: jax.Array | None, scores: jax.Array) -> jax.Array:
    """Return scores as they are, computed once the mask of another leaf is there.

    Else the program may compute and store the scores of all leaves at first: 4 bytes a weight.
    """
    if mask is None or not isinstance(mask, Tracer):
        return scores
    return jnp.where(once_there(np.bool_(True), mask), scores, jnp.zeros_like(scores))


def stored_once(value: jax.Array) -> jax.Array:
    """Return a value as it is; on a CPU it is stored, and not computed again by each reader.

    Compilers for CPUs put a short computation into each product that reads it, and the forward and
    the backward pass both read weights.
    """
    if not isinstance(value, Tracer) or jax.sharding.get_abstract_mesh().manual_axes:
        return value
    return lax.platform_dependent(value, cpu=lax.optimization_barrier, default=lambda x: x)
