"""Flax NNX on a mesh: variables say how they are sharded, and what is made from them follows."""

from typing import Any, ClassVar

import jax
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from tests.interop.mesh_laws import MeshLaws
from tests.interop.nnx_jobs import Job, NnxJobs, train_step
from tests.interop.scenario import CLASSES, HEADS, VOCABULARY, WIDTH, Batch
from tests.third_party import leniently

HIDDEN = 32


def split(*axes: str | None) -> dict[str, Any]:
    """Return the metadata that shard a kernel and its bias."""
    kernel, bias = {"out_sharding": axes}, {"out_sharding": axes[1:]}
    return {"kernel_metadata": kernel, "bias_metadata": bias}


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        rows = {"out_sharding": (None, "model")}
        self.embed = nnx.Embed(VOCABULARY, WIDTH, embedding_metadata=rows, rngs=rngs)
        heads = split("data", "model", None)
        self.heads = nnx.LinearGeneral(WIDTH, (HEADS, WIDTH), rngs=rngs, **heads)
        self.up = nnx.Linear(HEADS * WIDTH, HIDDEN, rngs=rngs, **split("data", "model"))
        self.out = nnx.Linear(HIDDEN, CLASSES, rngs=rngs, **split(("model", "data"), None))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nnx.relu(self.heads(self.embed(tokens).mean(axis=1)))
        return self.out(nnx.relu(self.up(x.reshape(-1, HEADS * WIDTH))))


@nnx.jit(static_argnums=0)
def create(tx: optax.GradientTransformationExtraArgs) -> Job:
    model = leniently(Net)(nnx.Rngs(0))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


class TestNnxOnAMesh(NnxJobs, MeshLaws):
    specs: ClassVar = {
        "heads/kernel": P("data", "model", None),
        "out/kernel": P(("model", "data"), None),
        "up/kernel": P("data", "model"),
    }

    def start(self, tx: optax.GradientTransformationExtraArgs, mesh: Mesh) -> Job:
        with jax.set_mesh(mesh):
            return create(tx)

    def step(self, job: Job, mesh: Mesh, batch: Batch) -> tuple[Job, jax.Array]:
        with jax.set_mesh(mesh):
            return job, train_step(*job, *batch)
