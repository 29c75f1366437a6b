"""A plain dict of arrays, with no framework: names by hand, lists, and a key called `value`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tests.interop.laws import PackedLaws
from tests.interop.scenario import CLASSES, VOCABULARY, WIDTH, Batch, cross_entropy

Params = dict[str, Any]


def forward(params: Params, tokens: jax.Array) -> jax.Array:
    x = params["tok_emb"][tokens]
    x = x - x.mean(axis=-1, keepdims=True)
    x = x * params["ln"]["scale"][None, None]
    attention, (out,) = params["attention"], params["layers"]
    scores = x @ (x @ attention["key"]).swapaxes(1, 2)
    x = jax.nn.relu(x + jax.nn.softmax(scores) @ (x @ attention["value"]))
    return x.mean(axis=1) @ out["w"] + out["b"][None]


def initial() -> Params:
    keys = iter(jax.random.split(jax.random.key(0), 4))

    def matrix(rows: int, columns: int) -> jax.Array:
        return jax.random.normal(next(keys), (rows, columns)) * rows**-0.5

    return {
        "tok_emb": 4 * matrix(VOCABULARY, WIDTH),
        "ln": {"scale": jnp.ones(WIDTH)},
        "attention": {name: matrix(WIDTH, WIDTH) for name in ("key", "value")},
        "layers": [{"w": matrix(WIDTH, CLASSES), "b": jnp.zeros(CLASSES)}],
    }


class Job(NamedTuple):
    tx: optax.GradientTransformationExtraArgs
    params: Params
    opt_state: Any


@jax.jit(static_argnums=0)
def train_step(
    tx: optax.GradientTransformationExtraArgs,
    params: Params,
    opt_state: Any,
    tokens: jax.Array,
    labels: jax.Array,
) -> tuple[Params, Any, jax.Array]:
    def loss_fn(params: Params) -> jax.Array:
        return cross_entropy(forward(params, tokens), labels)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    new: Any = optax.apply_updates(params, updates)
    return new, opt_state, loss


class TestDict(PackedLaws):
    prunable = frozenset({"attention/key", "attention/value", "layers/0/w"})
    left = frozenset({"layers/0/b", "ln/scale", "tok_emb"})

    def start(self, tx: optax.GradientTransformationExtraArgs) -> Job:
        params = initial()
        return Job(tx, params, tx.init(params))

    def step(self, job: Job, batch: Batch) -> tuple[Job, jax.Array]:
        params, opt_state, loss = train_step(*job, *batch)
        return Job(job.tx, params, opt_state), loss

    def params(self, job: Job) -> Any:
        return job.params

    def opt_state(self, job: Job) -> Any:
        return job.opt_state

    def arrays(self, job: Job) -> Any:
        return job[1:]

    def with_arrays(self, job: Job, arrays: Any) -> Job:
        return Job(job.tx, *arrays)
