"""Fashion-MNIST for experiments: as arrays that travel in one file, and on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runner.api import Arrays, Context

NAME = "fashion_mnist"
CLASSES = 10
QUICK = (1024, 256)  # training and test images of a rehearsal


class Images(NamedTuple):
    """A dataset on the device."""

    train_images: jax.Array  # [N, H, W, C] uint8
    train_labels: jax.Array  # [N] int32
    test_images: jax.Array  # [M, H, W, C] uint8
    test_labels: jax.Array  # [M] int32


def fetch() -> Arrays:
    """Load Fashion-MNIST from whatever this machine offers; nothing may stand in for it."""
    from experiments.data import load  # needs TFDS, which a machine with --data need not have

    dataset = load(NAME)
    if dataset.name != NAME:
        raise RuntimeError(
            f"{NAME} is not to be had here: its stand-in would be another experiment"
        )
    return {name: getattr(dataset, name) for name in Images._fields}


def on_device(context: Context) -> Images:
    """Return the images on the device; few of them for a rehearsal."""
    return context.once("images", lambda: _placed(context))


def scale_of(context: Context) -> tuple[float, float]:
    """Return mean and standard deviation of the training pixels."""
    pixels = context.data[NAME]["train_images"]
    return context.once("scale", lambda: (float(pixels.mean()), float(pixels.std())))


def _placed(context: Context) -> Images:
    train, test = QUICK if context.quick else (None, None)
    arrays = context.data[NAME]
    limits = {"train": train, "test": test}
    cut = {name: arrays[name][: limits[name.split("_")[0]]] for name in Images._fields}
    return Images(**{name: jnp.asarray(np.ascontiguousarray(a)) for name, a in cut.items()})
