"""Models that are written by hand."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tests.graph.cases import Case, inputs, weights

NHWC = ("NHWC", "HWIO", "NHWC")


def rms(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * scale


def mlp() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(x @ p["first"] + p["bias"])
        return rms(x, p["scale"]) @ p["last"].T

    params = weights(first=(6, 8), bias=(8,), scale=(8,), last=(4, 8))
    return Case("mlp", fn, params, (inputs(5, 6),), {"first": 0, "last": 1})


def cnn() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        def conv(x: jax.Array, k: jax.Array, numbers: Any = NHWC, groups: int = 1) -> jax.Array:
            return lax.conv_general_dilated(
                x, k, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
            )

        x = jax.nn.relu(conv(x, p["plain"]))
        x = jax.nn.relu(conv(x, p["grouped"], groups=2))
        x = conv(x, p["depthwise"], groups=6)
        x = conv(x, p["torch"], ("NHWC", "OIHW", "NHWC"))
        return x.reshape(x.shape[0], -1) @ p["head"]

    params = weights(
        plain=(3, 3, 3, 4), grouped=(3, 3, 2, 6), depthwise=(3, 3, 1, 6), torch=(2, 6, 1, 1),
        head=(4 * 4 * 2, 3),
    )  # fmt: skip
    axes = {"plain": 2, "grouped": 2, "depthwise": 2, "torch": 1, "head": 0}
    return Case("cnn", fn, params, (inputs(2, 4, 4, 3),), axes)


def llama(depth: int = 2, scanned: bool = True) -> Case:
    d, heads, groups, width, hidden = 8, 4, 2, 4, 12

    def block(x: jax.Array, w: Any) -> tuple[jax.Array, None]:
        b, t, _ = x.shape
        h = rms(x, w["norm1"])
        q = (h @ w["q"]).reshape(b, t, heads, width)
        k = jnp.repeat((h @ w["k"]).reshape(b, t, groups, width), heads // groups, axis=2)
        v = jnp.repeat((h @ w["v"]).reshape(b, t, groups, width), heads // groups, axis=2)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * 0.5
        scores = jnp.where(jnp.tril(jnp.ones((t, t), bool))[None, None], scores, -1e9)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)
        x = x + mixed.reshape(b, t, heads * width) @ w["o"]
        h = rms(x, w["norm2"])
        return x + (jax.nn.silu(h @ w["gate"]) * (h @ w["up"])) @ w["down"], None

    def fn(p: Any, tokens: jax.Array) -> jax.Array:
        x = p["embed"][tokens]
        if scanned:
            x, _ = lax.scan(jax.checkpoint(block), x, p["blocks"])
        else:
            for layer in p["blocks"]:
                x, _ = block(x, layer)
        return rms(x, p["norm"]) @ p["embed"].T

    shapes = {
        "q": (d, heads * width),
        "k": (d, groups * width),
        "v": (d, groups * width),
        "o": (heads * width, d),
        "gate": (d, hidden),
        "up": (d, hidden),
        "down": (hidden, d),
        "norm1": (d,),
        "norm2": (d,),
    }
    top = weights(embed=(11, d), norm=(d,))
    stacked = weights(**{name: (depth, *shape) for name, shape in shapes.items()})
    layers = [{n: w[i] for n, w in stacked.items()} for i in range(depth)]
    params = {**top, "blocks": stacked if scanned else layers}
    matrices = ("q", "k", "v", "o", "gate", "up", "down")
    paths = [f"blocks/{n}" for n in matrices]
    if not scanned:
        paths = [f"blocks/{i}/{n}" for i in range(depth) for n in matrices]
    axes = {path: int(scanned) for path in paths} | {"embed": 1}
    tokens = jnp.asarray([[1, 2, 3, 4, 5], [5, 4, 10, 2, 0]])
    stacks = dict.fromkeys(paths, 0) if scanned else {}
    name = "llama_scanned" if scanned else "llama"
    return Case(name, fn, params, (tokens,), axes, stacks, frozenset({"embed"}))


def experts() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        gates = jax.nn.softmax(x @ p["router"], axis=-1)
        best, index = lax.top_k(gates, 2)
        chosen = jnp.sum(jax.nn.one_hot(index, 4) * best[..., None], axis=1)
        x = x + jnp.einsum("te,td,edf->tf", chosen, x, p["mixed"])
        for_each = jnp.einsum("te,td->etd", chosen, x)
        x = x + jnp.einsum("etd,edf->tf", for_each, p["batched"])
        order = jnp.argsort(index[:, 0])
        sizes = jnp.sum(jax.nn.one_hot(index[:, 0], 4, dtype=jnp.int32), axis=0)
        return lax.ragged_dot(x[order], p["ragged"], sizes)

    params = weights(router=(6, 4), mixed=(4, 6, 6), batched=(4, 6, 6), ragged=(4, 6, 3))
    axes = {"router": 0, "mixed": 1, "batched": 1, "ragged": 1}
    return Case("experts", fn, params, (inputs(7, 6),), axes)


def indexed() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        x = lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ p["loop"][i]), x)
        for i in range(2):
            x = jnp.tanh(x @ p["listed"][i])
        return x

    params = weights(loop=(3, 4, 4), listed=(2, 4, 4))
    axes = {"loop": 1, "listed": 1}
    return Case("indexed", fn, params, (inputs(5, 4),), axes, {"loop": 0, "listed": 0})


def relaid() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        q, k = jnp.split(x @ p["fused"], 2, axis=-1)
        parts = jnp.split(p["sliced"], 2, axis=1)
        x = q @ parts[0] + k @ parts[1]
        both = jnp.concatenate([p["left"], p["right"].T], axis=1)
        x = x @ both
        heads = x.reshape(-1, 2, 4)
        x = jnp.einsum("thk,hkd->td", heads, p["output"])
        blocks = p["diagonal"].reshape(2, 3, 5)
        x = jnp.einsum("tgi,gio->tgo", x.reshape(-1, 2, 3), blocks).reshape(-1, 10)
        stack = jnp.stack([p["one"], p["two"].T])
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0] @ p["flipped"][::-1]

    params = weights(
        fused=(6, 8), sliced=(4, 8), left=(4, 3), right=(5, 4), output=(2, 4, 6), diagonal=(6, 5),
        one=(10, 10), two=(10, 10), flipped=(10, 2),
    )  # fmt: skip
    axes = {
        "fused": 0,
        "sliced": 0,
        "left": 0,
        "right": 1,
        "output": (0, 1),
        "diagonal": 0,
        "one": 0,
        "two": 1,
        "flipped": 0,
    }
    # The scan meets `one` in its first turn only, and the graph says so.
    return Case("relaid", fn, params, (inputs(5, 6),), axes, moving=frozenset({"one", "two"}))


def effective() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        direction = p["v"] * lax.rsqrt(jnp.sum(p["v"] * p["v"], axis=0, keepdims=True))
        x = x @ (direction * p["g"][None, :])
        x = x @ (p["quantised"].astype(jnp.float32) * p["step"])
        x = x @ (p["frozen"] * p["mask"] + p["down"] @ p["up"])
        return jnp.tanh(x @ jnp.exp(p["log"])) @ jnp.where(p["kept"] > 0, p["pruned"], 0.0)

    params = weights(
        v=(4, 5), g=(5,), step=(), frozen=(6, 4), mask=(6, 4), down=(6, 2), up=(2, 4), log=(4, 4),
        kept=(4, 2), pruned=(4, 2),
    )  # fmt: skip
    params["quantised"] = jnp.ones((5, 6), jnp.int8)
    # A channel of `v` has a part in its norm, too.
    axes, moving = {"v": 0, "pruned": 0}, frozenset({"v"})
    return Case("effective", fn, params, (inputs(3, 4),), axes, moving=moving)


def branches() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        x = lax.cond(jnp.sum(x) > 0, lambda x: x @ p["yes"], lambda x: x @ p["no"].T, x)

        def turn(state: Any) -> Any:
            i, x, a, b = state
            return i + 1, jnp.tanh(x @ a), b, a

        start = (0, x, p["a"], p["b"])
        return lax.while_loop(lambda s: (s[0] < 3) & (jnp.sum(s[1]) < 9), turn, start)[1]

    params = weights(yes=(4, 6), no=(6, 4), a=(6, 6), b=(6, 6))
    axes = {"yes": 0, "no": 1, "a": 0, "b": 0}
    return Case("branches", fn, params, (inputs(5, 4),), axes, moving=frozenset(axes))


ALL = (
    *(mlp(), cnn(), llama(), llama(scanned=False), experts(), indexed()),
    *(relaid(), effective(), branches()),
)
