"""A deep network on Fashion-MNIST, with batch normalisation but without a state."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.runner import images, models
from experiments.runner.api import Context
from experiments.runner.images import Images
from experiments.runner.training import Task

FOR_STATISTICS = 2000  # training images whose statistics normalise at the test


class Network:
    """The network as functions of its parameters."""

    def __init__(self, context: Context, widths: Sequence[int]) -> None:
        self.model = models.DeepCNN(images.CLASSES, tuple(widths))
        self.prepared = functools.partial(_prepared, scale=images.scale_of(context))
        example = self.prepared(context.data[images.NAME]["train_images"][:1])
        self.example = jnp.zeros(example.shape, example.dtype)
        self._variables = jax.jit(lambda key: self.model.init(key, self.example, train=False))
        shapes = jax.eval_shape(self._variables, jax.random.key(0))["batch_stats"]
        self.first = jax.tree_util.tree_map_with_path(_untrained, shapes)

    def init(self, key: jax.Array) -> Any:
        """Return the first parameters."""
        return self._variables(key)["params"]

    def by_batch(self, params: Any, x: jax.Array) -> jax.Array:
        """Return logits, normalised by the batch, as in training."""
        return self._with_statistics(params, x)[0]

    def as_at_first(self, params: Any, x: jax.Array) -> jax.Array:
        """Return logits, normalised by mean 0 and variance 1, as running statistics begin."""
        return self.given(params, self.first, x)

    def given(self, params: Any, statistics: Any, x: jax.Array) -> jax.Array:
        """Return logits, normalised by the statistics that are given."""
        variables = {"params": params, "batch_stats": statistics}
        logits: Any = self.model.apply(variables, x, train=False)
        return logits

    def statistics(self, params: Any, x: jax.Array) -> Any:
        """Return the statistics of each layer over a batch."""
        return self._with_statistics(params, x)[1]

    def _with_statistics(self, params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        logits: Any
        logits, changed = self.model.apply(
            {"params": params}, x, train=True, mutable=["batch_stats"]
        )
        return logits, changed["batch_stats"]


def of(network: Network) -> Task:
    """Return what is trained."""

    def loss(params: Any, data: Images, batch: jax.Array) -> jax.Array:
        logits = network.by_batch(params, network.prepared(data.train_images[batch]))
        return models.cross_entropy(logits, data.train_labels[batch])

    def evaluate(params: Any, data: Images) -> dict[str, jax.Array]:
        sample = network.prepared(data.train_images[:FOR_STATISTICS])
        statistics = network.statistics(params, sample)
        return models.on_test_images(
            lambda x: network.given(params, statistics, network.prepared(x)), data
        )

    return Task(network.init, loss, evaluate)


def _untrained(path: Any, like: Any) -> jax.Array:
    fill = jnp.ones if path[-1].key == "var" else jnp.zeros
    return fill(like.shape, like.dtype)


def _prepared(pixels: Any, scale: tuple[float, float]) -> jax.Array:
    return models.prepared(jnp.asarray(pixels), *scale)
