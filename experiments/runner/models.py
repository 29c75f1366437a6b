"""Convolutional networks whose seeds run side by side.

A convolution is written as a product of matrices, over the patches of its input: under ``vmap``
over seeds it is then a batched product, where a convolution becomes a grouped one, which is slow.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.runner.images import Images

EVALUATED_AT_ONCE = 1000


class Convolution(nn.Module):
    """`nn.Conv` with a 3 x 3 window, the same parameters and the same padding."""

    features: int
    strides: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return [N, H / strides, W / strides, features] of [N, H, W, C]."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        y = patches(x, self.strides) @ kernel.reshape(-1, self.features)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            y = y + bias.reshape(1, 1, 1, -1)
        return y


def patches(x: jax.Array, strides: int) -> jax.Array:
    """Return the 3 x 3 windows of images [N, H / strides, W / strides, 9 C], padded by zeros."""
    _, height, width, _ = x.shape
    sizes, window = (height, width), (3, 3)
    pads = lax.padtype_to_pads(sizes, window, (strides, strides), "SAME")
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = (-(-size // strides) for size in sizes)
    shifted = [
        padded[:, i : i + rows * strides : strides, j : j + columns * strides : strides]
        for i in range(3)
        for j in range(3)
    ]
    return jnp.concatenate([part[:, :rows, :columns] for part in shifted], axis=-1)


class CNN(nn.Module):
    """The network of the quickstart, parameter by parameter."""

    num_classes: int
    mean: float  # of the training pixels
    std: float

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return logits [N, classes] of images [N, H, W, C] uint8."""
        x = prepared(images, self.mean, self.std)
        x = nn.relu(Convolution(16, name="Conv_0")(x))
        x = nn.relu(Convolution(32, strides=2, name="Conv_1")(x))
        x = nn.relu(nn.Dense(256)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(x)


class DeepCNN(nn.Module):
    """A plain deep network in the manner of VGG: pairs of convolutions with batch normalisation.

    ``train`` normalises by the batch, otherwise by the ``batch_stats`` that are given.
    """

    num_classes: int
    widths: Sequence[int]  # of the pairs; between two pairs the image is halved

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return logits [N, classes] of prepared images [N, H, W, C]."""
        for pair, width in enumerate(self.widths):
            for turn in range(2):
                halves = pair > 0 and turn == 0
                x = Convolution(width, strides=1 + halves, use_bias=False)(x)
                x = nn.BatchNorm(use_running_average=not train, momentum=0.0)(x)
                x = nn.relu(x)
        return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))


def prepared(images: jax.Array, mean: float, std: float) -> jax.Array:
    """Return normalised images, with 2 x 2 pixels as channels: a quarter of the work."""
    x = (images.astype(jnp.float32) - np.float32(mean)) / np.float32(std)
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(n, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, height // 2, width // 2, 4 * channels)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean loss of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def on_test_images(
    logits_of: Callable[[jax.Array], jax.Array], data: Images
) -> dict[str, jax.Array]:
    """Return the accuracy and the loss of ``images -> logits`` on the test images."""
    at_once = min(EVALUATED_AT_ONCE, len(data.test_labels))
    batches = len(data.test_labels) // at_once
    images, labels = (
        array[: batches * at_once].reshape(batches, at_once, *array.shape[1:])
        for array in (data.test_images, data.test_labels)
    )

    def one(batch: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = logits_of(batch[0])
        return jnp.mean(logits.argmax(-1) == batch[1]), cross_entropy(logits, batch[1])

    accuracy, loss = lax.map(one, (images, labels))
    return {"accuracy": jnp.mean(accuracy), "loss": jnp.mean(loss)}
