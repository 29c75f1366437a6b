"""What the common checks run: one small model, fixed gradients, and the calls they lead to."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from jaxprune._core import paths
from tests import third_party
from tests.members import CALLS, TransformRow

Tree = Any
Step = Callable[[Tree, Any, Tree], tuple[Tree, Any]]

PRUNABLE = ("hidden/kernel", "out/kernel")
EXEMPT = ("hidden/bias", "norm/scale")
# Large enough for eight devices to cut no group of the rows' patterns.
SHAPES = {"hidden/kernel": (16, 32), "out/kernel": (128, 8)}
# Powers of two: what the optimizer multiplies is exact, fused or not.
SGD = optax.sgd(0.25, momentum=0.5)
ADAM = optax.adam(0.125)


def draw(seed: int, dtype: Any = jnp.float32) -> Tree:
    """Arrays of the model's structure, on the host."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(dtype)

    return {
        "hidden": {"kernel": normal(16, 32), "bias": normal(32)},
        "norm": {"scale": normal(8)},
        "out": {"kernel": normal(128, 8)},
    }


def parameters(dtype: Any = jnp.float32) -> Tree:
    """The model at the start."""
    return jax.tree.map(jnp.asarray, draw(0, dtype))


def gradients(call: int, dtype: Any = jnp.float32) -> Tree:
    """The gradients of a call: the same for all transforms, whatever became of the parameters."""
    return jax.tree.map(jnp.asarray, draw(1 + call, dtype))


def transform(
    row: TransformRow,
    inner: optax.GradientTransformation,
    params: Tree | None = None,
    **settings: Any,
) -> optax.GradientTransformationExtraArgs:
    """The row's transform around an optimizer of optax, lenient in there alone."""
    params = parameters() if params is None else params
    return row.make(third_party.inner(inner), params, **settings)


def step_of(tx: optax.GradientTransformation) -> Step:
    """One step of training."""
    tx = optax.with_extra_args_support(tx)
    apply = third_party.leniently(optax.apply_updates)

    def step(params: Tree, state: Any, grads: Tree) -> tuple[Tree, Any]:
        updates, state = tx.update(grads, state, params)
        return apply(params, updates), state

    return step


class Call(NamedTuple):
    """What one call of update led to, on the host."""

    params: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    final: dict[str, np.ndarray]
    inner: dict[str, np.ndarray]  # the inner optimizer's state


def host(tree: Tree) -> dict[str, np.ndarray]:
    """Copy a tree's arrays by path, before they are donated."""
    return {path: np.array(leaf) for path, leaf in paths.flatten(tree).items()}


def leaves(tree: Tree) -> dict[str, np.ndarray]:
    """Copy the arrays of any state."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _array(leaf) for path, leaf in found}


def _array(leaf: Any) -> np.ndarray:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.array(jax.random.key_data(leaf) if is_key else leaf)


def snapshot(params: Tree, state: Any) -> Call:
    """Copy what a call led to."""
    masks, final = jaxprune.get_masks(state), jaxprune.final_params(params, state)
    return Call(host(params), host(masks), host(final), leaves(getattr(state, "inner_state", ())))


def train(
    tx: optax.GradientTransformation,
    step: Step | None = None,
    *,
    params: Tree | None = None,
    dtype: Any = jnp.float32,
    repeat: int = 1,
) -> tuple[Call, ...]:
    """Train the model, or some branches of it, for all calls; return what each led to."""
    model: Any = parameters(dtype) if params is None else params
    step = step_of(tx) if step is None else step
    state, calls = tx.init(model), []
    for call in range(CALLS):
        grads = {branch: gradients(call, dtype)[branch] for branch in model}
        for _ in range(repeat):
            model, state = step(model, state, grads)
        calls.append(snapshot(model, state))
    return tuple(calls)


@functools.cache
def trained(row: TransformRow, inner: optax.GradientTransformation = ADAM) -> tuple[Call, ...]:
    """The row's own training, outside jit."""
    return train(transform(row, inner))


def equal(some: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> bool:
    """Tell whether arrays are the same, bit for bit."""
    return some.keys() == others.keys() and all(
        a.tobytes() == others[path].tobytes() for path, a in some.items()
    )
