"""Haiku: nested dicts whose keys hold slashes, and a state beside the parameters."""

from typing import Any, NamedTuple

import haiku as hk
import jax
import optax

from tests.interop.laws import PackedLaws
from tests.interop.scenario import CLASSES, VOCABULARY, WIDTH, Batch, batch, cross_entropy
from tests.third_party import leniently


def forward(tokens: jax.Array) -> jax.Array:
    x = hk.Embed(VOCABULARY, WIDTH)(tokens)
    x = hk.LayerNorm(-1, True, True)(x + hk.Conv1D(WIDTH, 3)(x))
    x = hk.BatchNorm(True, True, 0.9)(x, is_training=True).mean(axis=1)
    return hk.nets.MLP([2 * WIDTH, CLASSES])(x)


NET = hk.without_apply_rng(hk.transform_with_state(forward))


class Job(NamedTuple):
    tx: optax.GradientTransformationExtraArgs
    params: hk.Params
    state: hk.State
    opt_state: Any


@jax.jit(static_argnums=0)
def train_step(
    tx: optax.GradientTransformationExtraArgs,
    params: hk.Params,
    state: hk.State,
    opt_state: Any,
    tokens: jax.Array,
    labels: jax.Array,
) -> tuple[hk.Params, hk.State, Any, jax.Array]:
    def loss_fn(params: hk.Params) -> tuple[jax.Array, hk.State]:
        logits, changed = NET.apply(params, state, tokens)
        return cross_entropy(logits, labels), changed

    differentiate = leniently(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, changed), grads = differentiate(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    new: Any = optax.apply_updates(params, updates)
    return new, changed, opt_state, loss


class TestHaiku(PackedLaws):
    prunable = frozenset(
        {
            "conv1_d/w",
            "mlp/~/linear_0/w",
            "mlp/~/linear_1/w",
        }
    )
    left = frozenset(
        {
            "batch_norm/scale",  # of three axes
            "conv1_d/b",
            "embed/embeddings",
            "layer_norm/scale",
        }
    )

    def start(self, tx: optax.GradientTransformationExtraArgs) -> Job:
        params, state = leniently(NET.init)(jax.random.key(0), batch()[0])
        return Job(tx, params, state, tx.init(params))

    def step(self, job: Job, batch: Batch) -> tuple[Job, jax.Array]:
        params, state, opt_state, loss = train_step(*job, *batch)
        return job._replace(params=params, state=state, opt_state=opt_state), loss

    def params(self, job: Job) -> Any:
        return job.params

    def opt_state(self, job: Job) -> Any:
        return job.opt_state

    def arrays(self, job: Job) -> Any:
        return job[1:]

    def with_arrays(self, job: Job, arrays: Any) -> Job:
        return Job(job.tx, *arrays)
