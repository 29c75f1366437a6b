"""Models of the frameworks that users come from."""

from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax import lax

from tests.graph.cases import Case, filled, initialised, inputs
from tests.third_party import leniently


class ResNetBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def norm() -> nn.BatchNorm:
            return nn.BatchNorm(use_running_average=True)

        y = nn.relu(norm()(nn.Conv(6, (3, 3), strides=2)(x)))
        y = norm()(nn.Conv(6, (3, 3), feature_group_count=2)(y))
        x = nn.relu(y + nn.Conv(6, (1, 1), strides=2, name="shortcut")(x))
        return nn.Dense(3)(x.mean((1, 2)))


def resnet() -> Case:
    x = inputs(2, 4, 4, 4)
    variables = initialised(ResNetBlock().init, jax.random.key(0), x)
    stats = jax.tree.map(lambda v: abs(v) + 0.5, variables["batch_stats"])

    def fn(params: Any, x: jax.Array) -> Any:
        return ResNetBlock().apply({"params": params, "batch_stats": stats}, x)

    axes = {"Conv_0/kernel": 2, "Conv_1/kernel": 2, "shortcut/kernel": 2, "Dense_0/kernel": 0}
    return Case("linen_resnet", fn, variables["params"], (x,), axes)


class ViT(nn.Module):
    """Class token, learned positions, one block: what a name cannot tell from a kernel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(8, (2, 2), strides=2, name="patches")(x).reshape(x.shape[0], -1, 8)
        token = self.param("token", nn.initializers.normal(), (1, 1, 8))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(), (1, x.shape[1], 8))
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(y, y)
        y = nn.LayerNorm()(x)
        return (x + nn.Dense(8)(nn.gelu(nn.Dense(12)(y))))[:, 0]


def vit() -> Case:
    x = inputs(2, 4, 4, 3)
    params = initialised(ViT().init, jax.random.key(0), x)["params"]
    axes = {f"attention/{name}/kernel": 0 for name in ("query", "key", "value")}
    axes |= {"attention/out/kernel": (0, 1), "patches/kernel": 2}
    axes |= {"Dense_0/kernel": 0, "Dense_1/kernel": 0}
    return Case("linen_vit", lambda p, x: ViT().apply({"params": p}, x), params, (x,), axes)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return x + nn.Dense(6)(nn.relu(nn.Dense(8)(nn.LayerNorm()(x)))), None


def stack() -> Case:
    scanned = nn.scan(
        nn.remat(Block), variable_axes={"params": 1}, split_rngs={"params": True}, length=3
    )
    x = inputs(2, 6)
    params = initialised(scanned().init, jax.random.key(0), x, None)["params"]
    paths = [f"Dense_{i}/kernel" for i in (0, 1)]
    return Case(
        "linen_scan",
        lambda p, x: scanned().apply({"params": p}, x, None)[0],
        params,
        (x,),
        dict.fromkeys(paths, 0),
        dict.fromkeys(paths, 1),
    )


def lstm() -> Case:
    model = nn.RNN(nn.OptimizedLSTMCell(4))
    x = inputs(2, 3, 5)
    params = initialised(model.init, jax.random.key(0), x)["params"]
    paths = [f"cell/{a}{b}/kernel" for a in "ih" for b in "ifgo"]
    axes = dict.fromkeys(paths, 0)
    return Case("linen_lstm", lambda p, x: model.apply({"params": p}, x), params, (x,), axes)


class NnxAttention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(7, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, 8, decode=False, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 12, rngs=rngs), nnx.Linear(12, 8, rngs=rngs)])

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        x = x + self.attention(x)
        return self.embed.attend(x + self.layers[1](nnx.gelu(self.layers[0](x))))


def nnx_attention() -> Case:
    tokens = jnp.asarray([[1, 2, 3], [6, 0, 2]])
    abstract = leniently(lambda: nnx.eval_shape(lambda: NnxAttention(nnx.Rngs(0))))()
    structure, shapes, rest = nnx.split(abstract, nnx.Param, ...)
    others = filled(rest)

    def fn(params: Any, tokens: jax.Array) -> jax.Array:
        return nnx.merge(structure, params, others)(tokens)

    axes = {f"attention/{name}/kernel": 0 for name in ("query", "key", "value")}
    axes |= {"attention/out/kernel": (0, 1), "embed/embedding": 1}
    axes |= {"layers/0/kernel": 0, "layers/1/kernel": 0}
    moving = frozenset({"embed/embedding"})
    return Case("nnx_attention", fn, filled(shapes), (tokens,), axes, moving=moving)


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv1d
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    cell: eqx.nn.GRUCell
    mlp: eqx.nn.MLP

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 4)
        self.conv = eqx.nn.Conv1d(3, 8, 3, padding=1, key=keys[0])
        self.norm = eqx.nn.LayerNorm(8)
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=keys[1])
        self.cell = eqx.nn.GRUCell(8, 5, key=keys[2])
        self.mlp = eqx.nn.MLP(5, 2, 6, depth=1, key=keys[3])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.vmap(self.norm)(self.conv(x.T).T)
        x = x + self.attention(x, x, x)
        state, _ = lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(5), x)
        return self.mlp(state)


def equinox() -> Case:
    model = initialised_module()
    axes = {f"attention/{name}_proj/weight": 1 for name in ("query", "key", "value", "output")}
    axes |= {"conv/weight": 1, "cell/weight_ih": 1, "cell/weight_hh": 1}
    axes |= {f"mlp/layers/{i}/weight": 1 for i in (0, 1)}
    return Case("equinox", lambda m, x: jax.vmap(m)(x), model, (inputs(2, 4, 3),), axes)


def initialised_module() -> Any:
    shapes = leniently(lambda: eqx.filter_eval_shape(EquinoxNet, jax.random.key(0)))()
    arrays, rest = eqx.partition(shapes, lambda leaf: hasattr(leaf, "shape"))
    return eqx.combine(filled(arrays), rest)


def haiku() -> Case:
    def forward(x: jax.Array) -> jax.Array:
        x = hk.Conv1D(4, 3)(x)
        core = hk.GRU(5)
        start = core.initial_state(x.shape[0])
        outputs: Any = hk.dynamic_unroll(core, jnp.swapaxes(x, 0, 1), start)[0]
        return hk.nets.MLP([6, 2])(hk.LayerNorm(-1, True, True)(outputs[-1]))

    net = hk.without_apply_rng(hk.transform(forward))
    x = inputs(2, 4, 3)
    params = initialised(net.init, jax.random.key(0), x)
    axes = {"conv1_d/w": 1, "gru/w_i": 0, "gru/w_h": 0}
    axes |= {f"mlp/~/linear_{i}/w": 0 for i in (0, 1)}
    return Case("haiku", net.apply, params, (x,), axes)


MAKERS = (resnet, vit, stack, lstm, nnx_attention, equinox, haiku)
