"""References change masks between two steps of the optimizer, ours in one call with a step.

A call of ours in which the inner optimizer pauses is what happens there between two steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from tests.third_party import inner


def pausable(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same optimizer; it stands still, state and all, in calls with ``pause=True``."""
    tx = inner(tx)

    def update(updates: Any, state: Any, params: Any = None, *, pause: bool) -> tuple[Any, Any]:
        if pause:
            return jax.tree.map(jnp.zeros_like, updates), state
        return tx.update(updates, state, params)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def moments_of(inner_state: Any) -> Any:
    """The momentum of SGD somewhere in an optimizer's state."""

    def is_trace(node: Any) -> bool:
        return isinstance(node, optax.TraceState)

    nodes = jax.tree.leaves(inner_state, is_leaf=is_trace)
    (trace,) = (node.trace for node in nodes if is_trace(node))
    return trace
