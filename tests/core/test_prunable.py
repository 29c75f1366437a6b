"""`where`: what the default takes from real models, and every other way to say it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxprune._core import paths
from jaxprune._core.prunable import default_where, select

KEY = jax.random.key(0)
IDS = jax.ShapeDtypeStruct((1, 4), jnp.int32)
IMAGE = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)


# The default on models of every framework: what is listed is selected, and nothing else.


class Linen(nn.Module):
    @nn.compact
    def __call__(self, ids: jax.Array, image: jax.Array) -> Any:
        x = nn.Embed(11, 8)(ids)
        x = x + self.param("pos_embedding", nn.initializers.normal(), (1, 4, 8))
        x = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)(x, x)
        x = nn.RMSNorm()(nn.LayerNorm()(x))
        scan = nn.scan(
            LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = scan()(x, None)
        y = nn.Conv(8, (2, 2), strides=(2, 2), name="patch_embed")(image)
        y = nn.BatchNorm(use_running_average=True)(nn.GroupNorm(2)(y))
        return nn.Dense(3)(x), nn.WeightNorm(nn.ConvTranspose(4, (2, 2)))(y)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        return nn.LayerNorm()(nn.DenseGeneral((2, 4))(x).reshape(x.shape)), None


class NNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)])
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(8, 3, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.cls_token = nnx.Param(jnp.ones((1, 1, 8)))


class Equinox(eqx.Module):
    tok_emb: eqx.nn.Embedding
    pos: eqx.nn.Embedding
    mlp: eqx.nn.MLP
    attention: eqx.nn.MultiheadAttention
    conv: eqx.nn.Conv2d
    norm1: eqx.nn.LayerNorm
    ln: eqx.nn.LayerNorm
    gru: eqx.nn.GRUCell
    gn: eqx.nn.GroupNorm
    cls_token: jax.Array

    def __init__(self, key: jax.Array) -> None:
        self.tok_emb = eqx.nn.Embedding(11, 8, key=key)
        self.pos = eqx.nn.Embedding(4, 8, key=key)
        self.mlp = eqx.nn.MLP(8, 3, 8, 2, key=key)
        self.attention = eqx.nn.MultiheadAttention(2, 8, use_query_bias=True, key=key)
        self.conv = eqx.nn.Conv2d(3, 8, 3, key=key)
        self.norm1 = eqx.nn.LayerNorm((4, 8))
        self.ln = eqx.nn.LayerNorm((4, 8))
        self.gru = eqx.nn.GRUCell(3, 4, key=key)
        self.gn = eqx.nn.GroupNorm(2, 8)
        self.cls_token = jnp.ones((1, 1, 8))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.mlp(x)


def haiku_net(ids: jax.Array, image: jax.Array) -> Any:
    x = hk.Embed(11, 8)(ids) + hk.get_parameter("pos_embs", (4, 8), init=jnp.ones)
    x = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.Constant(1.0))(x, x, x)
    x = hk.LayerNorm(-1, True, True)(x)
    y = hk.Bias()(hk.Conv2D(4, 3)(image))
    y = hk.BatchNorm(True, True, 0.9)(y, is_training=True)
    z, _ = hk.LSTM(5)(x[:, 0], hk.LSTM(5).initial_state(1))
    return hk.nets.MLP([4, 4])(x), y, z


def linen() -> Any:
    return jax.eval_shape(Linen().init, KEY, IDS, IMAGE)["params"]


def haiku() -> Any:
    return jax.eval_shape(hk.transform_with_state(haiku_net).init, KEY, IDS, IMAGE)[0]


def nnx_net() -> Any:
    return nnx.eval_shape(lambda: NNX(nnx.Rngs(0)))


def equinox() -> Any:
    return eqx.filter_eval_shape(Equinox, KEY)


def plain() -> Any:
    matrices = ["W1", "wq", "fc2/w", "head/weight"]
    others = ["embed", "wte", "pos_emb", "b1", "bq", "ln_f/scale", "rms_1/weight", "tokens"]
    tree: dict[str, Any] = {name: jnp.ones((4, 8)) for name in matrices + others}
    return tree | {"step": jnp.ones((2, 2), jnp.int32), "w": jnp.ones(3)}


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "Linen": (
        linen,
        "Dense_0/kernel MultiHeadDotProductAttention_0/{query,key,value,out}/kernel "
        "ScanLinenBlock_0/DenseGeneral_0/kernel patch_embed/kernel ConvTranspose_0/kernel",
    ),
    "NNX": (
        nnx_net,
        "attention/{query,key,value,out}/kernel conv/kernel dense/kernel",
    ),
    "NNX state": (
        lambda: nnx.state(nnx_net(), nnx.Param),
        "attention/{query,key,value,out}/kernel conv/kernel dense/kernel",
    ),
    "Equinox": (
        equinox,
        "mlp/layers/{0,1,2}/weight attention/{query,key,value,output}_proj/weight conv/weight "
        "gru/{weight_ih,weight_hh}",
    ),
    "Haiku": (
        haiku,
        "multi_head_attention/{query,key,value,linear}/w conv2_d/w lstm/linear/w "
        "mlp/~/{linear_0,linear_1}/w",
    ),
    "dict": (plain, "W1 wq fc2/w head/weight"),
}


def expanded(names: str) -> set[str]:
    """Write out the braces, as a shell does."""
    found = set()
    for name in names.split():
        head, _, rest = name.partition("{")
        inside, _, tail = rest.partition("}")
        found |= {head + part + tail for part in inside.split(",")}
    return found


@pytest.mark.standard_promotion
@pytest.mark.parametrize("model", MODELS)
def test_the_default_selects_matrices_and_kernels_only(model: str):
    make, names = MODELS[model]
    assert set(select(make(), default_where)) == expanded(names)


def test_what_equinox_does_not_say_is_selected():
    """The limit that the docstring states: nothing tells these from a matrix."""
    embedding = eqx.nn.Embedding(weight=jnp.ones((11, 8)))
    layers = [embedding, eqx.nn.LayerNorm((4, 8)), eqx.nn.LayerNorm(8)]
    found = select(eqx.nn.Sequential(layers), default_where)
    assert list(found) == ["layers/0/weight", "layers/1/weight"]


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("w", True),
        ("lora_b", True),
        ("B", True),
        ("ensemble/w", True),
        ("member/weight", True),
        ("pos_ffn/w1", True),
        ("token_mixing/w", True),
        ("patch_embed/kernel", True),
        ("patch_embed/w", False),
        ("b_q", False),
        ("b2", False),
        ("layer_scale", False),
        ("encoder/LayerNorm_0/weight", False),
        ("attn_ln/weight", False),
        ("bn1/weight", False),
        ("relative_attention_bias/weight", False),
        ("bias_hh", False),
        ("emb/w", False),
        ("token_type_embeddings/weight", False),
        ("wpe", False),
    ],
)
def test_names_speak_as_the_rule_says(path: str, taken: bool):
    assert default_where(path, jnp.ones((2, 3))) == taken


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn])
def test_every_floating_point_matrix_is_selected(dtype: Any):
    assert default_where("kernel", jnp.ones((2, 3), dtype))


OTHERS = {
    "vector": jnp.ones(3),
    "scalar": jnp.float32(1.0),
    "integers": jnp.ones((2, 2), jnp.int8),
    "booleans": jnp.ones((2, 2), bool),
    "random keys": jax.random.split(KEY, (2, 2)),
    "number": 1.0,
    "function": len,
}


@pytest.mark.parametrize("leaf", OTHERS)
def test_other_leaves_are_not(leaf: str):
    assert not default_where("kernel", OTHERS[leaf])


# Other ways to say it.

TREE = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "b": [jnp.ones((3, 3)), None]}
BOOLS = {"a": {"kernel": False, "bias": np.True_}, "b": [True, None]}


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("kernel$", ["a/kernel"]),
        ("^a/", ["a/bias", "a/kernel"]),
        (lambda path, leaf: leaf.ndim == 2 and path != "a/kernel", ["b/0"]),
        (BOOLS, ["a/bias", "b/0"]),
        ({"a/kernel": False, "a/bias": True, "b/0": True}, ["a/bias", "b/0"]),
    ],
    ids=["regex", "anchored", "predicate", "bools", "bools by path"],
)
def test_a_selection_is_named_in_tree_order(where: Any, names: list[str]):
    found = select(TREE, where)
    assert list(found) == names
    assert all(found[name] is paths.flatten(TREE)[name] for name in names)


def test_a_module_of_bools_is_a_tree_although_it_can_be_called():
    model = equinox()

    def in_mlp(key_path: Any, leaf: Any) -> bool:
        return paths.path_of(key_path).startswith("mlp") and hasattr(leaf, "dtype")

    where = jax.tree_util.tree_map_with_path(in_mlp, model)
    assert callable(where)
    layers = [f"mlp/layers/{i}" for i in range(3)]
    assert set(select(model, where)) == {f"{x}/{y}" for x in layers for y in ("weight", "bias")}


def test_a_function_that_is_a_tree_without_leaves_is_a_predicate():
    where = jax.tree_util.Partial(lambda path, leaf: path == "b/0")
    assert list(select(TREE, where)) == ["b/0"]


@pytest.mark.parametrize("tree", [{}, {"a": None}, {"a": optax.MaskedNode()}, {"a": "x"}], ids=str)
def test_without_arrays_nothing_is_selected_and_nothing_raised(tree: Any):
    assert select(tree, default_where) == {}
    assert select(tree, "kernel") == {}


# Errors.

MANY = {f"w{i}": jnp.ones(2) for i in range(10)}
ERRORS: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "nothing by the default": (
        {"bias": jnp.ones(2)},
        default_where,
        ValueError,
        "where=default_where selects none of the 1 parameters (bias). Pass a regular expression "
        "that is found in a path, a function of (path, leaf), or a tree of bools.",
    ),
    "nothing by an expression": (
        MANY,
        "kernel",
        ValueError,
        "where='kernel' selects none of the 10 parameters (w0, w1, w2, w3, w4, w5, w6, w7 and 2 "
        "more). Pass a regular expression that is found in a path, a function of (path, leaf), or "
        "a tree of bools.",
    ),
    "nothing by a tree": (
        {"w": jnp.ones(2)},
        {"w": False},
        ValueError,
        "where=a tree of bools selects none of the 1 parameters (w). Pass a regular expression "
        "that is found in a path, a function of (path, leaf), or a tree of bools.",
    ),
    "integers": (
        {"a": {"codes": jnp.ones((2, 2), jnp.int8)}},
        ".*",
        TypeError,
        "where='.*' selects 'a/codes' of dtype int8: only floating-point parameters can be "
        "pruned. Exclude it with where=.",
    ),
    "another tree": (
        TREE,
        {"a": {"kernel": True, "gain": True}, "b": [True, None]},
        ValueError,
        "where does not match the parameters: no entry for a/bias; entries without a parameter: "
        "a/gain. Give a tree of bools with the parameters' structure, a regular expression, or a "
        "function of (path, leaf).",
    ),
    "no tree at all": (
        {"w": jnp.ones(2)},
        None,
        ValueError,
        "where does not match the parameters: no entry for w; entries without a parameter: none. "
        "Give a tree of bools with the parameters' structure, a regular expression, or a function "
        "of (path, leaf).",
    ),
    "a tree of labels": (
        {"w": jnp.ones(2)},
        {"w": "keep"},
        TypeError,
        "where has 'keep' at 'w', of type str. A tree given as where holds one bool for each "
        "parameter, True = prunable.",
    ),
    "no expression": (
        TREE,
        "kernel(",
        ValueError,
        "where='kernel(' is not a regular expression: missing ), unterminated subpattern at "
        "position 6. It is searched in paths such as 'encoder/Dense_0/kernel'.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_says_what_is_wrong(name: str):
    tree, where, kind, text = ERRORS[name]
    with pytest.raises(kind) as raised:
        select(tree, where)
    assert str(raised.value) == text
