"""Flax Linen on a mesh: boxes say how parameters are sharded, and layers are scanned."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests import quick
from tests.interop.mesh_laws import MeshLaws
from tests.interop.scenario import CLASSES, VOCABULARY, WIDTH, Batch, cross_entropy
from tests.third_party import leniently

HIDDEN, BLOCKS = 32, 2


def split(*axes: Any) -> dict[str, Any]:
    """Return the initializers that shard a kernel and its bias."""
    kernel = nn.with_partitioning(nn.initializers.lecun_normal(), axes)
    bias = nn.with_partitioning(nn.initializers.zeros_init(), axes[1:])
    return {"kernel_init": kernel, "bias_init": bias}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        up = nn.relu(nn.Dense(HIDDEN, name="up", **split("data", "model"))(x))
        return x + nn.Dense(WIDTH, name="down", **split("model", "data"))(up), None


class Net(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, WIDTH)(tokens).mean(axis=1)
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=BLOCKS,
            metadata_params={nn.PARTITION_NAME: None},
        )
        x, _ = blocks(name="blocks")(x, None)
        x = nn.relu(nn.Dense(HIDDEN, name="last", **split(("data", "model"), None))(x))
        return nn.Dense(CLASSES)(x)


MODEL = Net()


def train_step(state: TrainState, tokens: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
    def loss_fn(params: Any) -> jax.Array:
        return cross_entropy(state.apply_fn({"params": params}, tokens), labels)

    loss, grads = leniently(jax.value_and_grad(loss_fn))(state.params)
    return state.apply_gradients(grads=grads), loss


@functools.cache  # a step is compiled once for each mesh
def functions(
    tx: optax.GradientTransformationExtraArgs, mesh: Mesh
) -> tuple[Callable[..., TrainState], Callable[..., tuple[TrainState, jax.Array]]]:
    """Return what makes a state on a mesh, and what takes a step there."""

    def create(key: jax.Array) -> TrainState:
        params = leniently(MODEL.init)(key, jnp.zeros((1, 1), jnp.int32))["params"]
        state = TrainState.create(apply_fn=MODEL.apply, params=params, tx=tx)
        return state.replace(step=jnp.int32(0))  # an int is compiled for, then an array

    placed = nn.get_sharding(jax.eval_shape(create, jax.random.key(0)), mesh)
    rows = NamedSharding(mesh, P("data"))
    step = quick.jit(train_step, in_shardings=(placed, rows, rows), out_shardings=(placed, None))
    return quick.jit(create, out_shardings=placed), step


class TestLinenOnAMesh(MeshLaws):
    specs: ClassVar = {
        "Dense_0/kernel": P(),  # without a box
        "blocks/down/kernel": P(None, "model", "data"),
        "blocks/up/kernel": P(None, "data", "model"),
        "last/kernel": P(("data", "model"), None),
    }
    stacked: ClassVar = {"blocks": 0}

    def start(self, tx: optax.GradientTransformationExtraArgs, mesh: Mesh) -> TrainState:
        with jax.set_mesh(mesh):
            return functions(tx, mesh)[0](jax.random.key(0))

    def step(self, job: TrainState, mesh: Mesh, batch: Batch) -> tuple[TrainState, jax.Array]:
        with jax.set_mesh(mesh):
            return functions(job.tx, mesh)[1](job, *batch)

    def params(self, job: TrainState) -> Any:
        return job.params

    def opt_state(self, job: TrainState) -> Any:
        return job.opt_state
