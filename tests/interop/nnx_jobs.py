"""A job of Flax NNX: a model and its optimizer, which change in place."""

from typing import Any

import jax
from flax import nnx

from tests.interop.jobs import Jobs
from tests.interop.scenario import cross_entropy
from tests.third_party import leniently

Job = tuple[Any, nnx.Optimizer]


@nnx.jit
def train_step(
    model: Any, optimizer: nnx.Optimizer, tokens: jax.Array, labels: jax.Array
) -> jax.Array:
    def loss_fn(model: Any) -> jax.Array:
        return cross_entropy(model(tokens), labels)

    loss, grads = leniently(nnx.value_and_grad(loss_fn))(model)
    optimizer.update(model, grads)
    return loss


class NnxJobs(Jobs):
    def params(self, job: Job) -> Any:
        return nnx.state(job[0], nnx.Param)

    def opt_state(self, job: Job) -> Any:
        return job[1].opt_state

    def arrays(self, job: Job) -> Any:
        return nnx.state(job)

    def with_arrays(self, job: Job, arrays: Any) -> Job:
        nnx.update(job, arrays)
        return job
