"""`jaxprune.nnx.forward`: the model holds the weights of the forward pass, and only for a while."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune
from tests.third_party import inner, leniently

PATTERN = jaxprune.NM(2, 4)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(8, 4, rngs=rngs)
        self.statistics = nnx.BatchNorm(4, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.tanh(self.statistics(self.hidden(x))))


Job = tuple[Net, nnx.Optimizer]
X = jax.random.normal(jax.random.key(1), (16, 8))


def start(tx: Any = None, wrt: Any = nnx.Param) -> Job:
    model = leniently(Net)(nnx.Rngs(0))
    tx = jaxprune.sr_ste(inner(optax.sgd(0.5)), PATTERN, decay=0.5) if tx is None else tx
    return model, nnx.Optimizer(model, tx, wrt=wrt)


def weights(model: Net) -> dict[str, np.ndarray]:
    state = nnx.as_pure(nnx.state(model, nnx.Param))
    return {name: np.asarray(state[name]["kernel"]) for name in ("hidden", "out")}


def pruned(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: np.where(PATTERN.mask(jnp.abs(kernel), 2), kernel, 0.0)
        for name, kernel in stored.items()
    }


def assert_equal(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def loss_fn(model: Net) -> jax.Array:
    return jnp.mean(model(X) ** 2)


@leniently
def outside(model: Net, optimizer: nnx.Optimizer) -> Any:
    with jaxprune.nnx.forward(model, optimizer):
        return nnx.value_and_grad(loss_fn)(model)


@leniently
def inside(model: Net, optimizer: nnx.Optimizer) -> Any:
    def masked_loss(model: Net) -> jax.Array:
        with jaxprune.nnx.forward(model, optimizer):
            return loss_fn(model)

    return nnx.value_and_grad(masked_loss)(model)


def test_the_model_holds_the_forward_weights_and_then_its_own():
    model, optimizer = start()
    stored = weights(model)
    with jaxprune.nnx.forward(model, optimizer) as same:
        assert same is model
        assert_equal(weights(model), pruned(stored))
        assert not np.array_equal(weights(model)["hidden"], stored["hidden"])
    assert_equal(weights(model), stored)


def test_its_own_weights_come_back_at_an_exception():
    model, optimizer = start()
    stored = weights(model)
    with pytest.raises(KeyError, match="mine"), jaxprune.nnx.forward(model, optimizer):
        raise KeyError("mine")
    assert_equal(weights(model), stored)


def test_gradients_pass_straight_through_around_and_inside_of_the_loss():
    model, optimizer = start()
    stored = weights(model)
    (loss, grads), (same, alike) = outside(model, optimizer), inside(model, optimizer)
    assert_equal(weights(model), stored)
    assert float(loss) == float(same)
    assert_equal(nnx.to_pure_dict(grads), nnx.to_pure_dict(alike))
    # The gradient is that of the loss at the pruned weights, for pruned weights too.
    nnx.update(model, {name: {"kernel": kernel} for name, kernel in pruned(stored).items()})
    value, slope = leniently(nnx.value_and_grad(loss_fn))(model)
    assert float(value) == float(loss)
    assert_equal(nnx.to_pure_dict(slope), nnx.to_pure_dict(grads))
    assert (np.asarray(slope["out"]["kernel"]) != 0).all()


def test_a_jitted_step_trains_the_stored_weights():
    @nnx.jit
    def step(model: Net, optimizer: nnx.Optimizer) -> jax.Array:
        loss, grads = outside(model, optimizer)
        optimizer.update(model, grads)
        return loss

    model, optimizer = start()
    twin, other = start()
    for _ in range(2):
        loss = step(model, optimizer)
        expected, grads = outside(twin, other)
        kernel = weights(twin)["hidden"]
        mask = PATTERN.mask(jnp.abs(kernel), 2)
        pull = np.where(mask, 0.0, 0.5 * kernel)
        other.update(twin, grads)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        after = kernel - 0.5 * (np.asarray(grads["hidden"]["kernel"]) + pull)
        np.testing.assert_allclose(weights(model)["hidden"], after, rtol=1e-5, atol=1e-6)
    assert (weights(model)["hidden"] != 0).all()
    assert not np.array_equal(model.statistics.mean[...], np.zeros(4))
    final = jaxprune.final_params(nnx.state(model, nnx.Param), optimizer.opt_state)
    assert_equal(final["hidden"]["kernel"][...], pruned(weights(model))["hidden"])


def test_a_part_of_the_model_is_swapped_alone():
    model, optimizer = start(wrt=nnx.All(nnx.Param, nnx.PathContains("out")))
    stored = weights(model)
    with jaxprune.nnx.forward(model, optimizer):
        assert_equal(weights(model), stored | {"out": pruned(stored)["out"]})
    assert_equal(weights(model), stored)


def test_transforms_that_store_sparse_weights_leave_the_model_as_it_is():
    model, optimizer = start(jaxprune.gradual(inner(optax.sgd(0.5)), 0.5))
    stored = weights(model)
    with jaxprune.nnx.forward(model, optimizer):
        assert_equal(weights(model), stored)
    assert_equal(weights(model), stored)


def test_an_update_inside_is_refused():
    model, optimizer = start()
    _, grads = outside(model, optimizer)
    with pytest.raises(ValueError) as error, jaxprune.nnx.forward(model, optimizer):
        optimizer.update(model, grads)
    assert str(error.value) == (
        "optimizer.update was called inside jaxprune.nnx.forward, where the model holds the "
        "weights of the forward pass: its update of the stored weights is lost. Call it after "
        "the with block."
    )


def test_packed_masks_are_refused():
    model, optimizer = start(jaxprune.ste(inner(optax.sgd(0.5)), PATTERN, packed=True))
    _, grads = outside(model, optimizer)
    optimizer.update(model, grads)
    with pytest.raises(ValueError) as error, jaxprune.nnx.forward(model, optimizer):
        pass
    assert str(error.value) == (
        "the packed masks of hidden/kernel/bits, out/kernel/bits have lost their sizes: flax.nnx "
        "rebuilds an optimizer's state from its arrays alone. Pass packed=False with "
        "nnx.Optimizer."
    )


def test_an_optimizer_without_a_transform_is_refused():
    model, optimizer = start(optax.sgd(0.5))
    with pytest.raises(ValueError) as error, jaxprune.nnx.forward(model, optimizer):
        pass
    assert "holds no state of a jaxprune transform" in str(error.value)


def test_importing_jaxprune_does_not_import_flax():
    code = "import sys, jaxprune; jaxprune.nnx.forward; sys.exit('flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
