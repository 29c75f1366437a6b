"""Flax Linen: the optimizer of a TrainState, with batch statistics and a boxed parameter."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state

from tests.interop.laws import PackedLaws
from tests.interop.scenario import CLASSES, HEADS, VOCABULARY, WIDTH, batch, cross_entropy
from tests.third_party import leniently


class Net(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, WIDTH)(tokens)
        x = nn.LayerNorm()(x + nn.Conv(WIDTH, (3,))(x))
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x).mean(axis=1))
        boxed = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        x = nn.relu(nn.DenseGeneral((HEADS, WIDTH))(x))
        return nn.Dense(CLASSES, kernel_init=boxed)(x.reshape(-1, HEADS * WIDTH))


MODEL = Net()  # one for all: a jitted step is compiled anew for another `apply_fn`


class State(train_state.TrainState):
    batch_stats: Any


@jax.jit
def train_step(state: State, tokens: jax.Array, labels: jax.Array) -> tuple[State, jax.Array]:
    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, changed = state.apply_fn(variables, tokens, mutable=["batch_stats"])
        return cross_entropy(logits, labels), changed["batch_stats"]

    differentiate = leniently(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, stats), grads = differentiate(state.params)
    return state.apply_gradients(grads=grads, batch_stats=stats), loss


class TestLinen(PackedLaws):
    prunable = frozenset(
        {
            "Conv_0/kernel",
            "DenseGeneral_0/kernel",
            "Dense_0/kernel",  # boxed
        }
    )
    left = frozenset(
        {
            "BatchNorm_0/scale",
            "Conv_0/bias",
            "DenseGeneral_0/bias",  # of two axes, as in attention
            "Embed_0/embedding",
            "LayerNorm_0/scale",
        }
    )

    def start(self, tx: optax.GradientTransformationExtraArgs) -> State:
        variables = leniently(MODEL.init)(jax.random.key(0), batch()[0])
        state = State.create(apply_fn=MODEL.apply, tx=tx, **variables)
        return state.replace(step=jnp.int32(0))  # an int is compiled for, then an array

    def step(self, job: State, batch: Any) -> tuple[State, jax.Array]:
        return train_step(job, *batch)

    def params(self, job: State) -> Any:
        return job.params

    def opt_state(self, job: State) -> Any:
        return job.opt_state
