"""A leaf has one name, whatever holds it."""

from typing import Any, NamedTuple

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


class Pair(NamedTuple):
    first: Any
    second: Any


def test_every_kind_of_key_is_named():
    tree = {"a": [1, Pair(2, {3: 4})], "b": (5,)}
    assert paths.flatten(tree) == {"a/0": 1, "a/1/first": 2, "a/1/second/3": 4, "b/0": 5}


def test_a_bare_leaf_has_the_empty_name():
    assert paths.flatten(7) == {"": 7}


def test_what_is_absent_has_no_name():
    assert paths.flatten({"a": None, "b": optax.MaskedNode(), "c": 1, "d": {}}) == {"c": 1}


def test_names_come_in_tree_order():
    assert list(paths.flatten({"b": [1, 2], "a": 3})) == ["a", "b/0", "b/1"]


class Box(NamedTuple):
    value: Any


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        ({"kernel": Box(1)}, "kernel"),
        ({"a": {"value": Box(1)}}, "a/value"),
        (Box(Box(1)), "value"),
        (Box(1), "value"),
        ({"attention": {"value": 1}}, "attention/value"),
        ({"attention": {"values": 1}}, "attention/values"),
        (Box({"kernel": 1}), "value/kernel"),
    ],
    ids=str,
)
def test_a_last_attribute_value_names_the_box_and_is_dropped(tree: Any, name: str):
    assert paths.flatten(tree) == {name: 1}


def test_the_values_of_an_attention_keep_their_name():
    attention = {"query": 1, "key": 2, "value": 3}
    assert paths.flatten({"attention": attention}) == {
        f"attention/{k}": v for k, v in attention.items()
    }


def linen(**options: Any) -> Any:
    dense = nn.Dense(2, **options)
    return {"layer": dense.init(jax.random.key(0), jnp.ones((1, 3)))["params"]}


class NNX(nnx.Module):
    def __init__(self) -> None:
        self.layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))


class Equinox(eqx.Module):
    layer: eqx.nn.Linear


def haiku() -> Any:
    def call(x: jax.Array) -> jax.Array:
        layer = hk.Linear(2, name="layer")  # modules are made inside the transform
        return layer(x)

    return hk.transform(call).init(jax.random.key(0), jnp.ones((1, 3)))


BOXED = nn.with_partitioning(nn.initializers.ones, (None, "model"))
TREES = {
    "dict": lambda: {"layer": {"bias": np.ones(2), "kernel": np.ones((3, 2))}},
    "Linen": linen,
    "Linen, boxed": lambda: linen(kernel_init=BOXED),
    "NNX": NNX,
    "NNX state": lambda: nnx.state(NNX(), nnx.Param),
    "NNX pure dict": lambda: nnx.to_pure_dict(nnx.state(NNX(), nnx.Param)),
    "Equinox": lambda: Equinox(eqx.nn.Linear(3, 2, key=jax.random.key(0))),
    "Haiku": haiku,
}
NAMES = {"Equinox": {"weight", "bias"}, "Haiku": {"w", "b"}}


@pytest.mark.standard_promotion
@pytest.mark.parametrize("framework", TREES)
def test_the_frameworks_boxes_do_not_show(framework: str):
    names = {f"layer/{name}" for name in NAMES.get(framework, {"kernel", "bias"})}
    found = paths.flatten(TREES[framework]())
    assert set(found) == names
    assert {np.shape(leaf) for leaf in found.values()} <= {(3, 2), (2, 3), (2,)}


@pytest.mark.standard_promotion
@pytest.mark.parametrize("framework", TREES)
def test_refilled_with_its_own_leaves_a_tree_is_itself(framework: str):
    tree = TREES[framework]()
    same = paths.refill(tree, paths.flatten(tree))
    assert jax.tree.structure(same) == jax.tree.structure(tree)
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (same, tree)), strict=True))


def test_what_is_not_given_is_masked_unless_told_otherwise():
    tree = {"a": 1, "b": [2, None]}
    assert paths.refill(tree, {"b/0": 5}) == {"a": optax.MaskedNode(), "b": [5, None]}
    kept = paths.refill(tree, {"b/0": 5}, lambda path, leaf: (path, leaf))
    assert kept == {"a": ("a", 1), "b": [5, None]}


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(ValueError) as raised:
        paths.flatten({"a/b": 1, "a": {"b": 2, "c": 3}})
    assert str(raised.value) == (
        "two leaves of the tree share one path: ['a/b']; rename one of the keys."
    )


def test_a_long_list_of_names_is_cut():
    assert paths.listed("abc") == "a, b, c"
    assert paths.listed(range(11), limit=3) == "0, 1, 2 and 8 more"
    assert paths.listed([]) == ""
