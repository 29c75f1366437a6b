"""Our side of the calibration benchmark: the phases of one block, and a whole model."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from jaxprune import models, posttraining
from jaxprune.graph import Graph
from jaxprune.models import LlamaConfig
from jaxprune.posttraining import Pruned, Target
from jaxprune.posttraining._blocks import Blocks, Weight
from jaxprune.types import Tree

METHODS = {"wanda": posttraining.wanda(), "sparsegpt": posttraining.sparsegpt()}
TARGETS = {"50%": Target(0.5), "2:4": Target(0.5, jaxprune.NM(2, 4))}
WHERE = r"^layers(_\d+)?/.*kernel$"


def peak_bytes() -> int | None:
    """Return the most that was in use since the process began, where the device counts it."""
    stats = jax.devices()[0].memory_stats()
    return None if stats is None else stats.get("peak_bytes_in_use")


def traced(config: LlamaConfig, params: Tree, batch: jax.Array, *, tf32: bool) -> Graph:
    """Trace the model; products in its forward pass are of float32, or of TF32 on a GPU."""
    with jax.default_matmul_precision("tensorfloat32" if tf32 else "highest"):
        graph = jaxprune.trace(models.llama(config), params, batch)
        assert len(graph.segments())
    return graph


class Phases:
    """The first block of a model: forward pass, statistics, pruning, each on its own."""

    def __init__(self, graph: Graph, params: Tree, batches: Sequence[jax.Array], name: str) -> None:
        """Send the batches up to the block."""
        self.method = METHODS[name]
        self.model = Blocks(graph, params, batches, where=WHERE, needs=self.method.needs)
        (self.index, self.segment) = next(
            (i, s) for i, s in enumerate(self.model.segments) if s in self.model.prunable
        )
        for i in range(self.index):
            self.model.forward(i)
        self.weights: list[Weight] = []

    def warm(self) -> None:
        """Compile, and run one batch."""
        live, counted = self.model.live, self.model.counted
        self.model.live, self.model.counted = live[:1], counted[:1]
        jax.block_until_ready((self.forward(), [weight.inputs for weight in self.collect()]))
        self.model.live, self.model.counted = live, counted

    def forward(self) -> Any:
        """Send all batches through the block."""
        params, found = self.segment.params(self.model.leaves), None
        for values in self.model.live:
            found = self.segment(params, *(values[v] for v in self.segment.reads))
        return found

    def outputs(self) -> None:
        """Replace the batches by what they become in the block, as the driver does."""
        self.model.forward(self.index)
        jax.block_until_ready(self.model.live)

    def collect(self) -> list[Weight]:
        """Gather the statistics over all batches."""
        self.weights = []  # those of the pass before make room
        self.weights = self.model.weights(self.segment)
        return self.weights


Solvers = Mapping[tuple[int, ...], Any]


def solvers(weights: Sequence[Weight], name: str, target: Target) -> Solvers:
    """Compile the pruning of each shape, side by side."""

    def one(weight: Weight) -> Any:
        prune = functools.partial(METHODS[name], target=target)
        return jax.jit(prune).lower(_matrix(weight), weight.inputs).compile()

    shapes = {_matrix(weight).shape: weight for weight in weights}
    with ThreadPoolExecutor() as pool:
        return dict(zip(shapes, pool.map(one, shapes.values()), strict=True))


def solve(weights: Sequence[Weight], compiled: Solvers) -> dict[str, Pruned]:
    """Prune the weights of a block; matrices (in, out) by the layer's name."""
    found = {}
    for weight in weights:
        matrix = _matrix(weight)
        found[named(weight.place[0])] = compiled[matrix.shape](matrix, weight.inputs)
    return found


def named(path: str) -> str:
    """Return a layer's name within its block."""
    return re.sub(r"^layers(_\d+)?/", "", path).removesuffix("/kernel")


def _matrix(weight: Weight) -> jax.Array:
    return weight.layout.matrix(weight.array)


def errors(weights: Sequence[Weight], *pruned: Mapping[str, np.ndarray]) -> list[float]:
    """Return the squared error of a block's layers over their outputs' squares, for each."""
    totals = np.zeros(1 + len(pruned))
    for weight in weights:
        dense, gram = _matrix(weight), weight.inputs.gram
        assert gram is not None
        totals[0] += float(_square(dense, gram))
        for i, some in enumerate(pruned, 1):
            totals[i] += float(_square(dense - some[named(weight.place[0])], gram))
    return [float(total / totals[0]) for total in totals[1:]]


@jax.jit
def _square(weight: jax.Array, gram: jax.Array) -> jax.Array:
    return jnp.sum(jnp.matmul(gram, weight, precision="highest") * weight)


def prune(
    graph: Graph, params: Tree, batches: Sequence[jax.Array], name: str, target: Target
) -> posttraining.Result:
    """Prune a whole model by the public call."""
    found = posttraining.prune_blocks(
        graph, params, batches, METHODS[name],
        sparsity=target.sparsity, pattern=target.pattern, where=WHERE,
    )  # fmt: skip
    return jax.block_until_ready(found)


def forward(graph: Graph, params: Tree, batches: Sequence[jax.Array]) -> None:
    """Send the batches through all blocks, and not through the head."""
    model = Blocks(graph, params, batches, where=WHERE, needs=("squares",))
    for i in range(len(model.segments) - 1):
        model.forward(i)
    jax.block_until_ready(model.live)


def layers(params: Tree) -> Iterator[dict[str, np.ndarray]]:
    """Yield the parameters of each block on the host, by path within it."""
    stacked = params.get("layers")
    trees = [params[name] for name in sorted(params) if name.startswith("layers_")]
    for i in range(len(trees) if stacked is None else len(jax.tree.leaves(stacked)[0])):
        tree = trees[i] if stacked is None else jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
        yield {
            "/".join(str(key.key) for key in path): np.asarray(leaf)
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
