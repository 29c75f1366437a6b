"""Small training states, and what it means that two are equal."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from jaxprune._core.packing import is_packed, pack

SCHEDULE = jaxprune.schedules.cubic(0.0, 0.75, begin=1, end=9)


def params(seed: int = 0) -> dict[str, Any]:
    """Parameters of two dense layers, one of them bfloat16 with an awkward last axis."""
    first, second = jax.random.split(jax.random.key(seed))
    return {
        "first": {"kernel": jax.random.normal(first, (8, 16)), "bias": jnp.zeros(16)},
        "second": {"kernel": jax.random.normal(second, (16, 5), jnp.bfloat16)},
    }


@functools.cache
def transform() -> optax.GradientTransformationExtraArgs:
    """An optimizer with a sparse one nested in it."""
    sparse = jaxprune.gradual(optax.adamw(0.01), SCHEDULE, every=3)
    return optax.chain(optax.clip_by_global_norm(1.0), sparse)


@jax.jit
def _step(state: Any) -> Any:
    """Take one step, with gradients that follow from the key in the state."""
    key, now = jax.random.split(state["key"])
    grads = jax.tree.map(lambda p: jax.random.normal(now, p.shape, p.dtype), state["params"])
    updates, opt_state = transform().update(grads, state["opt_state"], state["params"])
    moved = optax.apply_updates(state["params"], updates)
    return {"params": moved, "opt_state": opt_state, "key": key, "step": state["step"] + 1}


def train(state: Any, steps: int) -> Any:
    """Take some steps."""
    with optax_rules():
        for _ in range(steps):
            state = _step(state)
    return state


def start(seed: int = 0) -> dict[str, Any]:
    """Return a state before the first step."""
    weights, key = params(seed), jax.random.key(seed + 1)
    opt_state = transform().init(weights)
    return {"params": weights, "opt_state": opt_state, "key": key, "step": 0}


@functools.cache
def trained() -> dict[str, Any]:
    """Return a state after five steps, in which masks have zeros."""
    return train(start(), 5)


def packed(state: Any) -> Any:
    """Return the state that the transform has with ``packed=True``."""
    first, sparse = state["opt_state"]
    masks = jax.tree.map(pack, sparse.masks)
    return state | {"opt_state": (first, sparse._replace(masks=masks))}


def optax_rules() -> Any:
    """Let optax's own arithmetic promote dtypes."""
    return jax.numpy_dtype_promotion("standard")


def assert_equal(got: Any, want: Any) -> None:
    """Assert that two trees have the same structure, and leaves that agree bit for bit."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert type(a) is type(b)
        if isinstance(a, jax.Array):
            assert (a.dtype, a.committed, a.sharding) == (b.dtype, b.committed, b.sharding)
            assert getattr(a, "weak_type", False) == getattr(b, "weak_type", False)
        assert bits(a) == bits(b)


def bits(leaf: Any) -> tuple[str, tuple[int, ...], bytes]:
    """The content of a leaf, in which NaN is equal to itself and 0.0 differs from -0.0."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    return str(array.dtype), array.shape, array.tobytes()


def as_zeros(tree: Any) -> Any:
    """The same tree with other values, so that nothing of a template can pass for restored."""
    return jax.tree.map(_cleared, tree)


def _cleared(leaf: Any) -> Any:
    if getattr(leaf, "dtype", None) == jnp.uint32:  # fingerprints stay
        return leaf
    if not isinstance(leaf, jax.Array):
        return type(leaf)(0)
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    other = jnp.broadcast_to(jax.random.key(99), leaf.shape) if is_key else jnp.zeros_like(leaf)
    return jax.device_put(other, leaf.sharding) if leaf.committed else other


def packed_masks(tree: Any) -> list[Any]:
    """The packed masks of a tree."""
    return [node for node in jax.tree.leaves(tree, is_leaf=is_packed) if is_packed(node)]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder: the time of the last change of each entry, and its content."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in folder.rglob("*")
    }
