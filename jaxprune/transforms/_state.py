"""What a transform keeps between steps, and how it is found in any optimizer state."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxprune._core import paths
from jaxprune._core.packing import is_packed, unpack
from jaxprune.transforms._course import Course
from jaxprune.types import Tree

NEVER = -2
"""``Health.changed`` before the first change of masks: one less than the step before step 0."""


Look: TypeAlias = Callable[[str, jax.Array, jax.Array, jax.Array], jax.Array]
"""``(path, weight, stored mask, step) -> array`` of the weight's shape; hashable, no arrays."""


class Health(NamedTuple):
    """Pruned weights that are not zero, counted on the call after every change of masks.

    A link outside the transform that alters its updates (a scale, a clip by value, weight decay)
    brings pruned weights back; nothing else shows it.
    """

    changed: jax.Array  # () int32, the step of the last change of masks
    came_back: jax.Array  # (leaves,) int32, most pruned weights found non-zero, in tree order
    nonfinite: jax.Array  # (leaves,) int32, most pruned weights found NaN or infinite


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Method:
    """What is known about a recipe without its arrays: a node of the state without leaves.

    Attributes:
      name: the transform.
      reached: the step of the last scheduled change of masks, or None without an end.
      forward: what the loss sees of a weight, or None for the weight itself.
      export: the mask with which a weight is exported, or None for the stored mask.
      course: how many weights it keeps over training, or None if it does not say; `jaxprune.plan`
        asks.
    """

    name: str
    reached: int | None = None
    forward: Look | None = None
    export: Look | None = None
    # Follows from the recipe, whose fingerprint tells two of them apart.
    course: Course | None = dataclasses.field(default=None, compare=False, repr=False)


def no_news(leaves: int, changed: int) -> Health:
    """Return the health of a number of prunable parameters at the start."""
    # Two arrays, not one twice: a donated state may not hold a buffer two times.
    came_back, nonfinite = (jnp.zeros((leaves,), jnp.int32) for _ in range(2))
    return Health(jnp.asarray(changed, jnp.int32), came_back, nonfinite)


class LikeParams(NamedTuple):
    """Arrays of the prunable parameters, in the parameters' container as the masks are."""

    tree: Tree


def like_params(params: Tree, names: Iterable[str], extra: Tree) -> Tree:
    """Put a method's arrays by path into the parameters' container, as they are stored.

    ``optax.tree.map_params`` and rules of sharding find them there.

    Args:
      params: the parameters.
      names: paths of the prunable ones.
      extra: the method's own state; dicts with just these names as keys are arrays by path.
    """
    named = {*names}

    def ours(node: Any) -> bool:
        return isinstance(node, dict) and {*node} == named

    def placed(node: Any) -> Any:
        return LikeParams(paths.refill(params, node)) if ours(node) else node

    return jax.tree.map(placed, extra, is_leaf=ours)


def by_path(extra: Tree) -> Tree:
    """Undo `like_params`."""

    def taken(node: Any) -> Any:
        return paths.flatten(node.tree, is_packed) if isinstance(node, LikeParams) else node

    return jax.tree.map(taken, extra, is_leaf=lambda node: isinstance(node, LikeParams))


class State(NamedTuple):
    """State of every sparse-training transform."""

    step: jax.Array  # () int32, calls of update so far
    masks: Tree  # like params: bool or PackedMask, True = kept; MaskedNode if not prunable
    health: Health
    fingerprint: jax.Array  # () uint32, of the recipe
    method: Method
    extra: Tree  # what the method needs besides; `LikeParams` where that is arrays of weights
    inner_state: Any  # of the wrapped optimizer


def fingerprint_of(recipe: str) -> jax.Array:
    """Return the number by which two recipes are told apart when a state is restored."""
    return jnp.asarray(zlib.crc32(recipe.encode()), jnp.uint32)


def find_states(opt_state: Any) -> list[State]:
    """Return the sparse-training states inside any optimizer state.

    Raises:
      ValueError: there is none.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, State))
    states = [node for node in nodes if isinstance(node, State)]
    if not states:
        raise ValueError(
            f"opt_state of type {type(opt_state).__name__} holds no state of a jaxprune transform. "
            "Wrap the optimizer (tx = jaxprune.gradual(tx, ...)) and pass the state of tx.init."
        )
    return states


def get_masks(opt_state: Any) -> Tree:
    """Find the masks in any optimizer state.

    Args:
      opt_state: state of an optimizer that holds one or more jaxprune transforms, at any depth
        (``optax.chain``, ``optax.multi_transform``, a Flax ``TrainState``'s ``opt_state``, ...).

    Returns:
      Tree like the parameters: boolean arrays (packed ones are unpacked), True = kept, and
      ``optax.MaskedNode()`` for parameters that are not prunable. To map over it together with
      parameters, tell ``jax.tree.map`` that ``optax.MaskedNode`` is a leaf.

    Raises:
      ValueError: no jaxprune transform is found.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> params = {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.zeros(2)}
      >>> tx = optax.chain(optax.clip(1.0), jaxprune.gradual(optax.sgd(0.1), 0.5))
      >>> opt_state = tx.init(params)
      >>> updates, opt_state = tx.update(params, opt_state, params)
      >>> jaxprune.get_masks(opt_state)["kernel"].tolist()
      [[False, True]]
    """
    trees = [
        jax.tree.map(unpack, state.masks, is_leaf=is_packed) for state in find_states(opt_state)
    ]
    return functools.reduce(_merged, trees)


def _merged(first: Tree, second: Tree) -> Tree:
    """Fill the places of ``first`` that hold no mask from ``second``, where either may be cut off.

    ``optax.multi_transform`` with labels for whole branches leaves one ``MaskedNode`` for a branch.
    """
    if isinstance(first, optax.MaskedNode):
        return second
    if isinstance(second, optax.MaskedNode) or jax.tree_util.all_leaves([first]):
        return first
    children, treedef = jax.tree.flatten(first, is_leaf=lambda node: node is not first)
    others = treedef.flatten_up_to(second)
    return treedef.unflatten([_merged(a, b) for a, b in zip(children, others, strict=True)])


def stored_masks(state: State) -> dict[str, jax.Array]:
    """Return ``{path: boolean mask}`` of one state.

    Raises:
      TypeError: something outside has computed with the state.
    """
    masks = paths.flatten(jax.tree.map(unpack, state.masks, is_leaf=is_packed))
    for path, mask in masks.items():
        if mask.dtype != jnp.bool_:
            raise TypeError(
                f"the stored mask of {path!r} has dtype {mask.dtype}, not bool: a transform around "
                f"{state.method.name} computes with its state, as optax.contrib.sam does with "
                "opaque_mode=False. Put it inside, around the optimizer."
            )
    return masks
