"""What is trained: the two transformers on their data, for `training`."""

import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.nm import text
from experiments.nm.models import BLOCKS, Decoder, VisionTransformer
from experiments.nm.text import Text
from experiments.runner import images, models
from experiments.runner.api import Context
from experiments.runner.images import Images
from experiments.runner.training import Task

WINDOWS_AT_ONCE = 256  # in an evaluation


class Shape(NamedTuple):
    """The size of a transformer."""

    width: int
    depth: int
    heads: int


class Prepared(NamedTuple):
    """A task, and what it is trained on."""

    task: Task
    data: Any
    examples: int


def vision(context: Context, shape: Shape) -> Prepared:
    """Return Fashion-MNIST with a vision transformer."""
    data, (mean, std) = images.on_device(context), images.scale_of(context)
    model = VisionTransformer(images.CLASSES, *shape, mean=mean, std=std)
    like = np.asarray(data.train_images[:1])

    def loss(params: Any, data: Images, batch: jax.Array) -> jax.Array:
        logits = _logits(model, params, data.train_images[batch])
        return models.cross_entropy(logits, data.train_labels[batch])

    def evaluate(params: Any, data: Images) -> dict[str, jax.Array]:
        found = models.on_test_images(lambda x: _logits(model, params, x), data)
        return {**found, "sparsity": share_of_zeros(params)}

    task = Task(lambda key: model.init(key, like)["params"], loss, evaluate)
    return Prepared(task, data, len(data.train_labels))


def language(context: Context, shape: Shape, length: int) -> Prepared:
    """Return Austen's novels with a decoder, in windows of so many characters."""
    data = text.on_device(context)
    model = Decoder(text.vocabulary(context), *shape)
    like = np.zeros((1, length), np.int32)

    def loss(params: Any, data: Text, batch: jax.Array) -> jax.Array:
        return _next_character(model, params, text.windows(data.train, batch, length + 1))

    def evaluate(params: Any, data: Text) -> dict[str, jax.Array]:
        found = _on_all_windows(model, params, data.test, length)
        return {"bits": found / np.float32(np.log(2)), "sparsity": share_of_zeros(params)}

    task = Task(lambda key: model.init(key, like)["params"], loss, evaluate)
    return Prepared(task, data, len(data.train) - length)


def share_of_zeros(params: Any) -> jax.Array:
    """Return the share of zeros among the kernels of the blocks."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = [(jax.tree_util.keystr(at, simple=True, separator="/"), leaf) for at, leaf in leaves]
    kernels = [leaf for path, leaf in named if re.search(BLOCKS, path)]
    zeros = jnp.stack([jnp.sum(kernel == 0, dtype=jnp.int32) for kernel in kernels])
    return jnp.sum(zeros) / np.float32(sum(kernel.size for kernel in kernels))


def _logits(model: nn.Module, params: Any, inputs: jax.Array) -> jax.Array:
    logits: Any = model.apply({"params": params}, inputs)
    return logits


def _next_character(model: Decoder, params: Any, characters: jax.Array) -> jax.Array:
    """Return the mean loss of each next character, in nats."""
    return models.cross_entropy(_logits(model, params, characters[:, :-1]), characters[:, 1:])


def _on_all_windows(model: Decoder, params: Any, held_out: jax.Array, length: int) -> jax.Array:
    """Return the mean loss over a text in windows that follow each other; a rest is left out."""
    count = (len(held_out) - 1) // length
    at_once = min(WINDOWS_AT_ONCE, count)
    starts = np.arange(count // at_once * at_once, dtype=np.int32) * length

    def one(starts: jax.Array) -> jax.Array:
        return _next_character(model, params, text.windows(held_out, starts, length + 1))

    return jnp.mean(jax.lax.map(one, jnp.asarray(starts).reshape(-1, at_once)))
