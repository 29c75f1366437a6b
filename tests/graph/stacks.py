"""Models of equal blocks, three deep, in the forms that people write them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from tests.graph import models
from tests.graph.cases import filled, initialised, inputs, weights
from tests.third_party import leniently

DEPTH, WIDTH, HIDDEN = 3, 4, 8


@dataclasses.dataclass(frozen=True)
class Stack:
    """One model: its function, parameters, inputs, and the paths of a block's matrices."""

    fn: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    of_block: Callable[[int], set[tuple[str, int | None]]]


def block(w: Any, x: jax.Array) -> jax.Array:
    """A residual block of two matrices."""
    return x + jax.nn.relu(x @ w["up"]) @ w["down"]


def layers(depth: int = DEPTH) -> Any:
    """Parameters of blocks in a list, between an embedding and a head."""
    some = weights(up=(depth, WIDTH, HIDDEN), down=(depth, HIDDEN, WIDTH))
    listed = [{name: leaf[i] for name, leaf in some.items()} for i in range(depth)]
    return {**weights(first=(3, WIDTH), last=(WIDTH, 2)), "blocks": listed}


def stacked(depth: int = DEPTH) -> Any:
    """The same, the blocks' with a leading layer axis."""
    params = layers(depth)
    return params | {"blocks": jax.tree.map(lambda *ws: jnp.stack(ws), *params["blocks"])}


def unrolled(through: Callable[[Any, jax.Array], jax.Array] = block, params: Any = None) -> Stack:
    """Blocks one after the other."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        x = x @ p["first"]
        for w in p["blocks"]:
            x = through(w, x)
        return x @ p["last"]

    return Stack(fn, layers() if params is None else params, (inputs(5, 3),), listed)


def scanned(before: Callable[[Any], Any] = lambda p: p, params: Any = None) -> Stack:
    """Blocks in a scan, after something was done to the parameters."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        x, p = x @ p["first"], before(p)
        x, _ = lax.scan(lambda x, w: (block(w, x), None), x, p["blocks"])
        return (x @ p["last"].astype(x.dtype)).astype(jnp.float32)

    def of_block(i: int) -> set[tuple[str, int | None]]:
        return {("blocks/up", i), ("blocks/down", i)}

    return Stack(fn, stacked() if params is None else params, (inputs(5, 3),), of_block)


def listed(i: int) -> set[tuple[str, int | None]]:
    """The matrices of a block in a list."""
    return {(f"blocks/{i}/up", None), (f"blocks/{i}/down", None)}


def masked() -> Stack:
    """Stacked parameters times masks that are parameters, too."""
    params = stacked()
    params["masks"] = jax.tree.map(lambda w: jnp.asarray(w > 0), params["blocks"])

    def before(p: Any) -> Any:
        kept = jax.tree.map(lambda w, m: w * m.astype(w.dtype), p["blocks"], p["masks"])
        return p | {"blocks": kept}

    stack = scanned(before, params)
    both = ("blocks", "masks")
    return dataclasses.replace(
        stack, of_block=lambda i: {(f"{of}/{name}", i) for of in both for name in ("up", "down")}
    )


def cast(params: Any) -> Any:
    """All parameters to bfloat16, as mixed precision does up front."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)


def cast_list() -> Stack:
    """A list of blocks, cast up front."""
    plain = unrolled()

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return plain.fn(cast(p), x.astype(jnp.bfloat16)).astype(jnp.float32)

    return dataclasses.replace(plain, fn=fn)


def cast_stack() -> Stack:
    """Stacked blocks, cast up front."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return scanned().fn(cast(p), x.astype(jnp.bfloat16))

    return dataclasses.replace(scanned(), fn=fn)


def recurrent() -> Stack:
    """Each block runs over time, in a scan of its own."""

    def through(w: Any, x: jax.Array) -> jax.Array:
        def turn(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = jax.nn.relu(x @ w["up"] + state)
            return state, state @ w["down"]

        return x + lax.scan(turn, jnp.zeros(HIDDEN), x)[1]

    return unrolled(through)


def shared_mask() -> Stack:
    """A mask that is made once and read in each block."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        x, mask = x @ p["first"], jnp.tril(jnp.ones((5, 5))) / 5.0
        for w in p["blocks"]:
            x = block(w, x + mask @ x)
        return x @ p["last"]

    return dataclasses.replace(unrolled(), fn=fn)


class Encoder(nn.Module):
    """A ViT's block."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(y, y)
        return x + nn.Dense(4)(nn.gelu(nn.Dense(6)(nn.LayerNorm()(x))))


class ViT(nn.Module):
    """Patches, positions, blocks and a head."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(4, (2, 2), strides=2, name="patches")(x).reshape(x.shape[0], -1, 4)
        x = x + self.param("positions", nn.initializers.normal(), (1, x.shape[1], 4))
        for i in range(DEPTH):
            x = Encoder(name=f"blocks_{i}")(x)
        return nn.Dense(2)(nn.LayerNorm()(x)[:, 0])


def vit() -> Stack:
    """Flax modules."""
    x = inputs(2, 4, 4, 3)
    params = initialised(ViT().init, jax.random.key(0), x)["params"]

    def of_block(i: int) -> set[tuple[str, int | None]]:
        names = [f"attention/{n}/kernel" for n in ("query", "key", "value", "out")]
        names += ["Dense_0/kernel", "Dense_1/kernel"]
        return {(f"blocks_{i}/{name}", None) for name in names}

    fn = leniently(lambda p, x: ViT().apply({"params": p}, x))
    return Stack(fn, params, (x,), of_block)


class Listed(eqx.Module):
    """A list of layers and an activation, which is no array."""

    layers: list[eqx.nn.Linear]
    act: Callable[[jax.Array], jax.Array]

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = x + self.act(layer(x))
        return x


def equinox() -> Stack:
    """An Equinox module, mapped over the batch."""
    keys = jax.random.split(jax.random.key(0), DEPTH)
    linear = leniently(lambda: [eqx.filter_eval_shape(eqx.nn.Linear, 4, 4, key=k) for k in keys])()
    arrays, rest = eqx.partition(linear, lambda leaf: hasattr(leaf, "shape"))
    model = Listed(eqx.combine(filled(arrays), rest), jnp.tanh)
    fn = leniently(lambda m, x: jax.vmap(m)(x))
    return Stack(fn, model, (inputs(5, 4),), lambda i: {(f"layers/{i}/weight", None)})


def llama(scanned: bool) -> Stack:
    """A decoder, its blocks unrolled, or rematerialised in a scan."""
    case = models.llama(DEPTH, scanned)
    names = ("q", "k", "v", "o", "gate", "up", "down")

    def of_block(i: int) -> set[tuple[str, int | None]]:
        return {(f"blocks/{n}", i) if scanned else (f"blocks/{i}/{n}", None) for n in names}

    return Stack(case.fn, case.params, case.inputs, of_block)


MAKERS: dict[str, Callable[[], Stack]] = {
    "llama": lambda: llama(scanned=False),
    "llama scanned": lambda: llama(scanned=True),
    "rematerialised": lambda: unrolled(jax.checkpoint(block)),
    "cast": cast_list,
    "cast and scanned": cast_stack,
    "masked and scanned": masked,
    "recurrent": recurrent,
    "shared mask": shared_mask,
    "vit": vit,
    "equinox": equinox,
}
