"""From the stored parameters to those that the loss sees, or that are exported; health checks."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._core import counts, paths
from jaxprune._core.meshes import gathered_alone
from jaxprune._core.turns import stored_once
from jaxprune.masks import apply_masks, check_masks
from jaxprune.transforms._state import Look, State, find_states, stored_masks
from jaxprune.types import Tree


def forward_params(params: Tree, opt_state: Any) -> Tree:
    """Return the parameters that the loss sees.

    The identity for transforms that store sparse parameters (`jaxprune.gradual`,
    `jaxprune.static`). Transforms that store dense parameters and train through a mask (the
    straight-through family) mask here; the tangent is the identity, so that the call may stand
    inside or outside the differentiated function.

    Args:
      params: the stored parameters.
      opt_state: state of the optimizer that holds a jaxprune transform.

    Returns:
      Tree like ``params``.

    Raises:
      ValueError: no jaxprune transform is found in ``opt_state``, or its masks are those of another
        model.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> opt_state = jaxprune.gradual(optax.sgd(0.1), 0.5).init(params)
      >>> jaxprune.forward_params(params, opt_state) is params
      True
    """
    for state in find_states(opt_state):
        if state.method.forward is not None:
            params = _through(state, params)
    return params


def _through(state: State, params: Tree) -> Tree:
    forward = state.method.forward
    assert forward is not None
    weights, masks = paths.flatten(params), stored_masks(state)
    check_masks(weights, masks)
    see = _straight_through(forward)
    seen = {path: see(path, weights[path], mask, state.step) for path, mask in masks.items()}
    return paths.refill(params, seen, lambda path, leaf: leaf)


def _straight_through(forward: Look) -> Look:
    """Give a function of a weight the identity as its tangent."""

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def see(path: str, weight: jax.Array, mask: jax.Array, step: jax.Array) -> jax.Array:
        return stored_once(gathered_alone(forward(path, weight, mask, step)))

    @see.defjvp
    def see_jvp(path: str, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        return stored_once(gathered_alone(forward(path, *primals))), tangents[0]

    return see


def final_params(params: Tree, opt_state: Any) -> Tree:
    """Return what is exported: pruned weights are exactly zero.

    Args:
      params: the parameters, or an average of them over time, in any container.
      opt_state: state of the optimizer that holds a jaxprune transform.

    Returns:
      Tree like ``params``.

    Raises:
      ValueError: no jaxprune transform in ``opt_state``, or masks that do not match.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> params = {"kernel": jnp.array([[1.0, 2.0]])}
      >>> tx = jaxprune.gradual(optax.sgd(0.0), 0.5)
      >>> updates, opt_state = tx.update(params, tx.init(params), params)
      >>> average = {"kernel": jnp.array([[0.5, 0.5]])}
      >>> jaxprune.final_params(average, opt_state)["kernel"].tolist()
      [[0.0, 0.5]]
    """
    for state in find_states(opt_state):
        params = apply_masks(params, _export_masks(state, params))
    return params


def _export_masks(state: State, params: Tree) -> dict[str, jax.Array]:
    masks, export = stored_masks(state), state.method.export
    if export is None:
        return masks
    weights = paths.flatten(params)
    return {path: export(path, weights[path], m, state.step) for path, m in masks.items()}


def value_and_grad(
    loss_fn: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., tuple[Any, Tree]]:
    """Differentiate a loss at the parameters that the forward pass sees.

    ``jax.value_and_grad`` at `forward_params`: one training loop for every method.

    Args:
      loss_fn: ``(params, *args) -> loss``, or ``(loss, aux)`` with ``has_aux``.
      has_aux: as in ``jax.value_and_grad``.

    Returns:
      Function ``(params, opt_state, *args, **kwargs) -> (loss, grads)``.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> params = {"kernel": jnp.array([[3.0]])}
      >>> opt_state = jaxprune.gradual(optax.sgd(0.1), 0.0).init(params)
      >>> differentiate = jaxprune.value_and_grad(lambda p: (p["kernel"] ** 2).sum())
      >>> loss, grads = differentiate(params, opt_state)
      >>> float(loss), grads["kernel"].tolist()
      (9.0, [[6.0]])
    """
    differentiate = jax.value_and_grad(loss_fn, has_aux=has_aux)

    def loss_and_grads(params: Tree, opt_state: Any, *args: Any, **kwargs: Any) -> Any:
        return differentiate(forward_params(params, opt_state), *args, **kwargs)

    return loss_and_grads


@dataclasses.dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
      problems: one sentence each, with the path and the remedy; empty if all is well.
    """

    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def raise_for_problems(self) -> None:
        """Raise a ``ValueError`` that lists the problems, if there are any."""
        if self.problems:
            raise ValueError("\n".join(self.problems))


def check(params: Tree, opt_state: Any) -> Report:
    """Look for sparse training that went wrong without a sign; call it outside jit.

    Pruned weights that are not zero now or were not after a change of masks, pruned weights that
    are NaN or infinite, and a schedule whose end was not reached.

    Args:
      params: the stored parameters.
      opt_state: state of the optimizer that holds a jaxprune transform.

    Returns:
      The report.

    Raises:
      ValueError: no jaxprune transform in ``opt_state``, or masks that do not match.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> params = {"kernel": jnp.array([[1.0, 2.0]])}
      >>> tx = optax.chain(jaxprune.gradual(optax.sgd(0.1), 0.5), optax.scale(0.5))
      >>> updates, opt_state = tx.update(params, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> print(jaxprune.check(params, opt_state).problems[0][:43])
      'kernel': 1 pruned weights are not zero. An
    """
    weights = paths.flatten(params)
    problems: list[str] = []
    for state in find_states(opt_state):
        masks = stored_masks(state)
        check_masks(weights, masks)
        for index, (path, mask) in enumerate(masks.items()):
            problems += _leaf_problems(path, weights[path], mask, state, index)
        problems += _schedule_problems(state)
    return Report(tuple(problems))


def _leaf_problems(
    path: str, weight: jax.Array, mask: jax.Array, state: State, index: int
) -> list[str]:
    started = int(np.max(state.step)) > 0 and state.method.forward is None
    now = ~mask & (weight != 0) if started else jnp.zeros_like(mask)
    back = max(_count(now), int(np.max(state.health.came_back[..., index])))
    wild = max(_count(now & ~jnp.isfinite(weight)), int(np.max(state.health.nonfinite[..., index])))
    found = []
    if wild:
        found.append(
            f"{path!r}: {wild} pruned weights were NaN or infinite, which no update turns into "
            "zero. Look for the cause in the optimizer or the learning rate."
        )
    if back > wild:
        found.append(
            f"{path!r}: {back} pruned weights are not zero. An optax link after the jaxprune "
            "transform, or around it, changes its updates: put the transform last, or mask with "
            "jaxprune.final_params."
        )
    return found


def _count(flags: jax.Array) -> int:
    return int(counts.how_many(flags))


def _schedule_problems(state: State) -> list[str]:
    reached, calls = state.method.reached, int(np.min(state.step))
    if reached is None or calls > reached:
        return []
    return [
        f"{state.method.name}: training stopped after {calls} steps, before the schedule's end at "
        f"step {reached}: its final sparsity was not reached. Reaching it takes {reached + 1} "
        "calls of update."
    ]
