"""A model as a test case: its function, its parameters, and what the graph should say of it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.third_party import leniently

Axes = int | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
      name: for the test's id.
      fn: a function of parameters and inputs.
      params: a tree of arrays.
      inputs: arrays.
      axes: the input-feature axes of each weight that `graph.where()` should select.
      layers: the layer axis of each of them that is stacked.
      moving: weights whose input moves with them, such as those of a tied embedding, so that the
        numerical check cannot tell one use from the other.
    """

    name: str
    fn: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    axes: Mapping[str, Axes]
    layers: Mapping[str, int] = dataclasses.field(default_factory=dict)
    moving: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        # Models are written as users write them; the library stays strict.
        object.__setattr__(self, "fn", leniently(self.fn))

    def __repr__(self) -> str:
        return self.name


def filled(shapes: Any, scale: float = 0.5) -> Any:
    """The same tree with random numbers in place of shapes; nothing is compiled for it."""
    rng = np.random.default_rng(0)

    def fill(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(np.zeros(leaf.shape, leaf.dtype))
        return jnp.asarray(rng.normal(size=leaf.shape, scale=scale).astype(leaf.dtype))

    return jax.tree.map(fill, shapes)


def initialised(init: Callable[..., Any], *args: Any) -> Any:
    """Parameters of the shapes that a framework's init gives."""
    return filled(leniently(lambda: jax.eval_shape(init, *args))())


def weights(**shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    """Random weights by name."""
    return filled({name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()})


def inputs(*shape: int, seed: int = 1) -> jax.Array:
    """Random activations."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
