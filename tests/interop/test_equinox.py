"""Equinox: modules are the pytrees; every leaf is called weight, and some are functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import optax
import pytest

import jaxprune
from jaxprune._core import paths
from tests.interop import scenario
from tests.interop.laws import PackedLaws, Trained, check_exported
from tests.interop.scenario import CLASSES, LENGTH, VOCABULARY, WIDTH, Batch, cross_entropy
from tests.third_party import leniently


class Net(eqx.Module):
    embedding: eqx.nn.Embedding
    conv: eqx.nn.Conv1d
    norm: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP
    activation: Callable[[jax.Array], jax.Array]

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 3)
        self.embedding = eqx.nn.Embedding(VOCABULARY, WIDTH, key=keys[0])
        self.conv = eqx.nn.Conv1d(WIDTH, WIDTH, 3, padding=1, key=keys[1])
        self.norm = eqx.nn.LayerNorm((LENGTH, WIDTH))
        self.mlp = eqx.nn.MLP(WIDTH, CLASSES, 2 * WIDTH, depth=1, key=keys[2])
        self.activation = jax.nn.tanh

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = jax.vmap(self.embedding)(tokens)
        x = self.norm(x + self.conv(x.T).T)
        return self.mlp(self.activation(x).mean(axis=0))


class Job(NamedTuple):
    tx: optax.GradientTransformationExtraArgs
    model: Net
    opt_state: Any


def filtered(model: Net) -> Net:
    return eqx.filter(model, eqx.is_inexact_array)


def whole(model: Net) -> Net:
    return model


@eqx.filter_jit
def train_step(
    job: Job, tokens: jax.Array, labels: jax.Array, select: Callable[[Net], Net] = filtered
) -> tuple[Job, jax.Array]:
    def loss_fn(model: Net) -> jax.Array:
        return cross_entropy(jax.vmap(model)(tokens), labels)

    loss, grads = leniently(eqx.filter_value_and_grad(loss_fn))(job.model)
    updates, opt_state = job.tx.update(grads, job.opt_state, select(job.model))
    return Job(job.tx, eqx.apply_updates(job.model, updates), opt_state), loss


class TestEquinox(PackedLaws):
    prunable = frozenset(
        {
            "conv/weight",
            "mlp/layers/0/weight",
            "mlp/layers/1/weight",
        }
    )
    left = frozenset(
        {
            "conv/bias",  # of two axes
            "embedding/weight",
            "mlp/layers/0/bias",
            "norm/weight",  # of two axes
        }
    )

    def start(self, tx: optax.GradientTransformationExtraArgs) -> Job:
        model = leniently(Net)(jax.random.key(0))
        return Job(tx, model, tx.init(filtered(model)))

    def step(self, job: Job, batch: Batch) -> tuple[Job, jax.Array]:
        return train_step(job, *batch)

    def params(self, job: Job) -> Net:
        return filtered(job.model)

    def opt_state(self, job: Job) -> Any:
        return job.opt_state

    def arrays(self, job: Job) -> Any:
        return eqx.filter(job, eqx.is_array)

    def with_arrays(self, job: Job, arrays: Any) -> Job:
        return eqx.combine(arrays, job)

    def test_the_model_itself_is_exported(
        self, trained: Trained, tx: optax.GradientTransformationExtraArgs
    ):
        check_exported(self.start(tx).model, trained.job.opt_state)
        pruned = jaxprune.final_params(trained.job.model, trained.job.opt_state)
        assert pruned.activation is jax.nn.tanh
        assert jaxprune.check(pruned, trained.job.opt_state).ok

    def test_the_model_itself_is_pruned(self):
        model = leniently(Net)(jax.random.key(0))
        pruned, masks = jaxprune.prune(model, 1 - scenario.DENSITY)
        assert set(paths.flatten(masks)) == self.prunable
        assert pruned.mlp.layers[0].weight.astype(bool).sum() == round(0.2 * 2 * WIDTH * WIDTH)


def test_a_whole_model_trains_where_the_optimizer_alone_can_train_it():
    tx = jaxprune.gradual(optax.sgd(0.1), 1 - scenario.DENSITY)
    model = leniently(Net)(jax.random.key(0))
    job = Job(tx, model, tx.init(model))
    job, _ = train_step(job, *scenario.batch(), whole)
    masks = jaxprune.get_masks(job.opt_state)
    assert set(paths.flatten(masks)) == TestEquinox.prunable
    assert (job.model.conv.weight != 0).tolist() == masks.conv.weight.tolist()


def test_a_whole_model_that_the_optimizer_cannot_take_is_refused():
    model = leniently(Net)(jax.random.key(0))
    tx = jaxprune.gradual(optax.adamw(1e-2), 0.8)
    with pytest.raises(TypeError) as error:
        tx.init(model)
    assert str(error.value) == (
        "params holds leaves that are not arrays, and the inner optimizer does not take them: "
        "mlp/activation (custom_jvp), mlp/final_activation (function), activation "
        "(PjitFunction). Pass the arrays alone, as with "
        "eqx.filter(model, eqx.is_inexact_array)."
    )
