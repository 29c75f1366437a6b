"""The masks of each method, from the first weights."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pai.task import Network
from experiments.runner import models
from experiments.runner.images import Images
from jaxprune import initial, scores
from jaxprune.allocation import erdos_renyi_kernel

Masks = Any
Batch = tuple[jax.Array, jax.Array]  # prepared images and labels


class Given(NamedTuple):
    """What differs between seeds."""

    key: jax.Array
    params: Any
    batches: list[Batch]


class Scorers:
    """The functions that are differentiated, made once so that each is compiled once."""

    def __init__(self, network: Network) -> None:
        def loss(params: Any, batch: Batch) -> jax.Array:
            logits = network.by_batch(params, batch[0])
            return models.cross_entropy(logits, batch[1])

        def heated(params: Any, batch: Batch, temperature: float) -> jax.Array:
            logits = network.by_batch(params, batch[0])
            return models.cross_entropy(logits / temperature, batch[1])

        self.loss, self.heated, self.plain = loss, heated, network.as_at_first


def random(scorers: Scorers, given: Given, sparsity: float, rounds: int) -> Masks:
    """Draw masks at ERK densities."""
    del scorers, rounds

    @jax.jit
    def drawn(params: Any, key: jax.Array) -> Masks:
        return initial.random_masks(params, sparsity, key, allocation=erdos_renyi_kernel)

    return drawn(given.params, jax.random.fold_in(given.key, 1))


def snip(scorers: Scorers, given: Given, sparsity: float, rounds: int) -> Masks:
    """Keep what the loss depends on most, in one round."""
    del rounds

    def score(params: Any, masks: Masks) -> Any:
        return scores.snip(scorers.loss, params, given.batches, masks=masks)

    return initial.iterate(given.params, score, sparsity, rounds=1)


def grasp(scorers: Scorers, given: Given, sparsity: float, rounds: int) -> Masks:
    """Keep what the flow of gradients needs most, in one round."""
    del rounds

    def score(params: Any, masks: Masks) -> Any:
        return scores.grasp(scorers.heated, params, given.batches, masks=masks)

    return initial.iterate(given.params, score, sparsity, rounds=1)


def synflow(scorers: Scorers, given: Given, sparsity: float, rounds: int) -> Masks:
    """Keep the strongest paths, in many rounds and without data.

    In float32: a product over nine layers stays far inside its range.
    """
    like = jax.ShapeDtypeStruct((1, *given.batches[0][0].shape[1:]), jnp.float32)

    def score(params: Any, masks: Masks) -> Any:
        return scores.synflow(scorers.plain, params, like, masks=masks)

    return initial.iterate(given.params, score, sparsity, rounds=rounds)


METHODS: Mapping[str, Callable[[Scorers, Given, float, int], Masks]] = {
    "random": random,
    "snip": snip,
    "grasp": grasp,
    "synflow": synflow,
}


def draw(method: str, scorers: Scorers, given: Given, *, sparsity: float, rounds: int) -> Masks:
    """Return the masks [seeds, ...] of a method, for what is given with a leading seed axis."""

    def one(of_seed: Given) -> Masks:
        return METHODS[method](scorers, of_seed, sparsity, rounds)

    # Scores are compared with each other: no rounding to 10 bits, which a GPU's products do.
    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(given)


def batches(
    data: Images, network: Network, seeds: tuple[int, ...], *, count: int, size: int
) -> list[Batch]:
    """Draw training images for the scores: ``count`` batches [seeds, size, ...]."""
    many = len(data.train_labels)
    drawn = [np.random.default_rng((seed, 2)).permutation(many) for seed in seeds]
    rows = jnp.asarray(np.stack(drawn)[:, : count * size].reshape(len(seeds), count, size))
    prepare = jax.vmap(network.prepared)
    return [
        (prepare(data.train_images[rows[:, i]]), data.train_labels[rows[:, i]])
        for i in range(count)
    ]
