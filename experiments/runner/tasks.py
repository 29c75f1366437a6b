"""What is trained: functions of parameters and data, for `training`."""

from typing import Any

import jax

from experiments.runner import images, models
from experiments.runner.api import Context
from experiments.runner.images import Images
from experiments.runner.training import Task


def fashion_cnn(context: Context) -> Task:
    """Return the task: Fashion-MNIST with the CNN of the quickstart."""
    model = models.CNN(images.CLASSES, *images.scale_of(context))
    like = context.data[images.NAME]["train_images"][:1]

    def loss(params: Any, data: Images, batch: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, data.train_images[batch])
        return models.cross_entropy(logits, data.train_labels[batch])

    def evaluate(params: Any, data: Images) -> dict[str, jax.Array]:
        def logits_of(pixels: jax.Array) -> Any:
            return model.apply({"params": params}, pixels)

        return models.on_test_images(logits_of, data)

    return Task(lambda key: model.init(key, like)["params"], loss, evaluate)
