"""Training of a few parameters: which ones, and that the others stay."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import recovery


class Net(nn.Module):
    """Two layers with a normalisation between them."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.LayerNorm()(nn.Dense(4)(x))
        return nn.Dense(2)(x)


@pytest.fixture(scope="module")
def params() -> Any:
    shapes = jax.eval_shape(Net().init, jax.random.key(0), jnp.ones((1, 3)))["params"]
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)


BIASES = {"Dense_0/bias", "Dense_1/bias", "LayerNorm_0/bias"}
NORMS = {"LayerNorm_0/bias", "LayerNorm_0/scale"}
SUBSETS: dict[str, tuple[Any, set[str]]] = {
    "biases": (recovery.biases, BIASES),
    "norms": (recovery.norms, NORMS),
    "biases_and_norms": (recovery.biases_and_norms, BIASES | NORMS),
    "head": (lambda tx: recovery.only(tx, "Dense_1"), {"Dense_1/bias", "Dense_1/kernel"}),
}


def by_path(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("name", SUBSETS)
def test_the_subset_alone_is_trained_and_remembered(name: str, params: Any) -> None:
    wrap, wanted = SUBSETS[name]
    # Weight decay would bring kernels down, and momentum would move pruned weights.
    decay = optax.add_decayed_weights(0.1)
    tx = wrap(optax.chain(decay, optax.sgd(0.1, momentum=0.9)))
    state = tx.init(params)
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    moved = {path for path, leaf in by_path(updates).items() if np.asarray(leaf).any()}
    assert moved == wanted
    assert set(by_path(optax.tree_utils.tree_get(state, "trace"))) == wanted


def test_adapters_of_the_subset(params: Any) -> None:
    assert set(recovery.full(params, where=recovery.is_bias)) == BIASES
    assert set(recovery.full(params, where=recovery.is_norm)) == NORMS
    trained = recovery.full(params, where=recovery.is_bias_or_norm)
    assert recovery.count_trainable(trained) == 4 + 2 + 4 + 4


def test_pruned_weights_stay_zero(params: Any) -> None:
    masks = {"Dense_0": {"kernel": jnp.arange(12).reshape(3, 4) % 2 == 0}}
    pruned = jaxprune.apply_masks(params, masks)
    tx = recovery.biases(optax.sgd(1.0))
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, pruned), tx.init(pruned), pruned)
    after = optax.apply_updates(pruned, updates)
    np.testing.assert_array_equal(after["Dense_0"]["kernel"], pruned["Dense_0"]["kernel"])
    np.testing.assert_array_equal(after["Dense_0"]["bias"], jnp.zeros(4))


def test_a_copy_is_trained(params: Any) -> None:
    trained = recovery.full(params, where="bias")
    assert trained["Dense_0/bias"].value is not params["Dense_0"]["bias"]


def test_names_of_other_frameworks() -> None:
    leaf = jnp.ones(2)
    names = {
        "linear/b": "b",
        "layer_norm/offset": "bn",  # Haiku
        "layer_norm/scale": "n",
        "layers/0/norm1/weight": "n",  # Equinox
        "block/c_attn/kernel": "",
        "wte/embedding": "",
        "bn1/scale": "n",
        "attention/q_bias": "b",
    }
    for name, kinds in names.items():
        assert (recovery.is_bias(name, leaf), recovery.is_norm(name, leaf)) == (
            "b" in kinds,
            "n" in kinds,
        ), name
    assert not recovery.is_bias("bias", jnp.arange(3))


def test_a_model_without_biases() -> None:
    with pytest.raises(ValueError) as caught:
        recovery.biases(optax.sgd(1.0)).init({"kernel": jnp.ones((2, 2))})
    assert str(caught.value) == (
        "where=is_bias selects none of the 1 parameters (kernel). Pass a regular expression that "
        "is found in a path, a function of (path, leaf), or a tree of bools."
    )
