"""A run that is the same on any number of processes, and bit for bit so."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from jaxprune import checkpoint, schedules
from tests import third_party

SHAPES = {"hidden": (16, 32), "out": (128, 8)}
# The last axis of `hidden` holds whole bytes on each device of the meshes here; that of `out` is
# whole, or on a mesh of eight along it, a single weight.
SPECS = {"hidden": P("data", "model"), "out": P(("data", "model"), None)}
METHODS = ("gradual", "rigl", "sr_ste")
LEARNED = ("learned",)  # gradients of a loss, whose sums over devices are rounded
EVERY = 3  # steps between checkpoints

# What it multiplies by are powers of two: no compiler can round it in two ways.
_SGD = optax.sgd(0.25, momentum=0.5)


@functools.cache
def transforms() -> dict[str, optax.GradientTransformationExtraArgs]:
    """One of each kind: it prunes, moves what lives, or stores dense weights behind N:M."""
    inner = third_party.inner(_SGD)
    ramp = schedules.cubic(0.0, 0.75, begin=0, end=8)
    return {
        "gradual": jaxprune.gradual(inner, ramp, every=2),
        "learned": jaxprune.gradual(inner, ramp, every=2),
        "rigl": jaxprune.rigl(inner, 0.75, every=2, end=9, where="hidden", packed=True),
        "sr_ste": jaxprune.sr_ste(inner, jaxprune.NM(2, 4), decay=2.0**-10, where="out"),
    }


def start(mesh: Mesh | None, methods: Sequence[str] = METHODS) -> Any:
    """The state of some methods before the first step, spread over a mesh or on one device."""

    def make() -> Any:
        keys = dict(zip(SHAPES, jax.random.split(jax.random.key(0)), strict=True))
        return {name: {"kernel": _drawn(keys[name], SHAPES[name])} for name in SHAPES}

    def states(params: Any) -> Any:
        state: Any = {"key": jax.random.key(1), "step": jnp.zeros((), jnp.int32)}
        for name in methods:
            state[name] = {"params": params, "opt_state": transforms()[name].init(params)}
        return state

    if mesh is None:
        return states(make())
    placed = {name: {"kernel": NamedSharding(mesh, SPECS[name])} for name in SHAPES}
    with jax.set_mesh(mesh):
        return jax.jit(states)(jax.jit(make, out_shardings=placed)())


@jax.jit
def step(state: Any) -> Any:
    """Take a step of all methods, with gradients that follow from the key and the weights."""
    after = {"key": state["key"], "step": state["step"] + 1}
    now = jax.random.fold_in(state["key"], state["step"])
    for name in (*METHODS, *LEARNED):
        if name not in state:
            continue
        tx, (params, opt_state) = transforms()[name], map(state[name].get, ("params", "opt_state"))
        if name in LEARNED:
            grads = jax.grad(_loss)(params, _drawn(now, (8, 4, 16)))
        else:
            grads = jax.tree.map(lambda p: 0.5 * p + _drawn(now, p.shape), params)
        updates, opt_state = tx.update(grads, opt_state, params)
        after[name] = {"params": optax.apply_updates(params, updates), "opt_state": opt_state}
    return after


def train(
    folder: Any,
    until: int,
    mesh: Mesh | None = None,
    methods: Sequence[str] = METHODS,
    before_step: Callable[[int], None] | None = None,
) -> Any:
    """Go on from the newest checkpoint, if there is one, and save every few steps."""
    state, first = start(mesh, methods), 0
    if checkpoint.latest_step(folder) is not None:
        first, state = checkpoint.restore(folder, state)
    for now in range(first, until):
        if before_step is not None:
            before_step(now)
        state = step(state)
        if (now + 1) % EVERY == 0:
            checkpoint.save(folder, now + 1, state, keep=9)
    return jax.block_until_ready(state)


def _loss(params: Any, x: jax.Array) -> jax.Array:
    x = jnp.tanh(x @ params["hidden"]["kernel"]).reshape(x.shape[0], -1)
    return jnp.mean((x @ params["out"]["kernel"] - 1.0) ** 2)


def _drawn(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw numbers that no way of compiling can round: those of a normal are computed."""
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
