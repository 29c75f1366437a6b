"""Whole training steps, lowered for a slice from descriptions of their arrays."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from experiments.pod.model import FSDP, Decoder, Shape, parameters
from jaxprune import graph
from jaxprune.graph import capture

Tree = Any
Transform = optax.GradientTransformation
Options = Mapping[str, Any]

SPARSITY, BEGIN, END, EVERY = 0.8, 1000, 20_000, 100
LAYERS = {"^layers/": 0}


@dataclasses.dataclass(frozen=True)
class Work:
    """A decoder on a mesh, and a batch of tokens.

    Attributes:
      shape: of the decoder.
      mesh: where it lies.
      sequences: of the batch, in all.
      length: of a sequence.
      where: the weights that are prunable, a regular expression found in the path.
    """

    shape: Shape
    mesh: Mesh
    sequences: int
    length: int
    where: str

    @property
    def options(self) -> Options:
        """What every transform is told."""
        return {"where": self.where, "layers": LAYERS}

    @property
    def params(self) -> Tree:
        """The weights, described."""
        return parameters(self.shape, self.mesh)

    def tokens(self, length: int) -> jax.ShapeDtypeStruct:
        """A batch, described."""
        sharding = NamedSharding(self.mesh, P(FSDP))
        return jax.ShapeDtypeStruct((self.sequences, length), jnp.int32, sharding=sharding)


def optimizer() -> Transform:
    """Return the bare optimizer."""
    adamw = optax.adamw(3e-4, b2=0.95, weight_decay=0.1)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def gradual(work: Work, *, packed: bool = False) -> Transform:
    """Return the optimizer that prunes gradually, each layer of a stack by itself."""
    ramp = jaxprune.schedules.cubic(0.0, SPARSITY, begin=BEGIN, end=END)
    return jaxprune.gradual(optimizer(), ramp, every=EVERY, packed=packed, **work.options)


def rigl(work: Work) -> Transform:
    """Return the optimizer that drops by magnitude and grows by gradient."""
    return jaxprune.rigl(optimizer(), SPARSITY, every=EVERY, end=END, **work.options)


def mdgf(work: Work) -> Transform:
    """Return the optimizer that trains 2:4 by progressive gradient flow."""
    pattern = jaxprune.NM(2, 4)
    return jaxprune.mdgf_exponential(optimizer(), pattern, begin=BEGIN, end=END, **work.options)


def static(work: Work) -> Transform:
    """Return the optimizer that trains with fixed masks."""
    masks = jax.eval_shape(lambda p: jaxprune.make_masks(p, SPARSITY, **work.options), work.params)
    # Its first state is made of the masks, which are described here.
    made = jaxprune.static(optimizer(), masks)

    def init(params: Tree) -> Tree:
        return jax.eval_shape(lambda p, m: jaxprune.static(optimizer(), m).init(p), params, masks)

    return Transform(init, made.update)


def train(work: Work, wrapped: Callable[[Work], Transform] | None) -> Any:
    """Lower a training step, whose parameters and state are donated.

    Args:
      work: what is trained.
      wrapped: makes the optimizer; None for the bare one.
    """
    decoder, params = Decoder(work.shape, work.mesh), work.params
    tx = optax.with_extra_args_support(optimizer() if wrapped is None else wrapped(work))
    state = placed(jax.eval_shape(tx.init, params), params, work.mesh)
    differentiate = jaxprune.value_and_grad(decoder.loss)
    if wrapped is None:
        bare = jax.value_and_grad(decoder.loss)
        differentiate = lambda p, _, tokens: bare(p, tokens)  # noqa: E731

    def step(params: Tree, state: Tree, tokens: jax.Array) -> tuple[Tree, Tree, jax.Array]:
        loss, grads = differentiate(params, state, tokens)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    kept = jax.tree.map(lambda x: x.sharding, (params, state))
    whole = NamedSharding(work.mesh, P())
    run = jax.jit(step, donate_argnums=(0, 1), out_shardings=(*kept, whole))
    return run.lower(params, state, work.tokens(work.length + 1))


def forward(work: Work) -> Any:
    """Lower the forward pass through all blocks."""
    decoder = Decoder(work.shape, work.mesh)
    return jax.jit(decoder.blocks).lower(work.params, work.tokens(work.length))


def calibrate(work: Work) -> Any:
    """Lower the forward pass that adds up the squares of every pruned weight's input."""
    decoder, tokens = Decoder(work.shape, work.mesh), work.tokens(work.length)
    stats = graph.statistics.sum_of_squares
    traced = jaxprune.trace(decoder.blocks, work.params, tokens)
    found = traced.capture(stats, where=lambda path, leaf: bool(re.search(work.where, path)))
    program, plan = found.program, found.plan

    def take(leaves: Any, arrays: Any) -> Any:
        return capture.taken(program, plan, stats, None, (tokens,), leaves, arrays)[1]

    given = (jax.tree.leaves(work.params), [tokens])
    whole = NamedSharding(work.mesh, P())
    total = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
        jax.eval_shape(take, *given),
    )
    adding: Any = capture.adding(stats, take)
    return adding.lower(total, *given)


LOWERED: Mapping[str, Callable[[Work], Any]] = {
    "bare": lambda work: train(work, None),
    "static": lambda work: train(work, static),
    "gradual": lambda work: train(work, gradual),
    "gradual-packed": lambda work: train(work, lambda work: gradual(work, packed=True)),
    "rigl": lambda work: train(work, rigl),
    "mdgf": lambda work: train(work, mdgf),
    "forward": forward,
    "calibration": calibrate,
}
"""What is compiled, by name."""

BARE = {"calibration": "forward"}
"""What a program is compared with, if not with the bare step."""


def placed(state: Tree, params: Tree, mesh: Mesh) -> Tree:
    """Let every leaf of a state lie as the parameter whose path it ends in, if it has its axes."""
    known = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def place(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        # A packed mask has one more name at its end: that of its bits.
        name = f"/{_path(path).removesuffix('/bits')}"
        owner = next((p for end, p in known.items() if name.endswith(f"/{end}")), None)
        sharding = NamedSharding(mesh, P())
        if owner is not None and leaf.ndim == owner.ndim:
            sharding = owner.sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, state)


def _path(key_path: Any) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")
