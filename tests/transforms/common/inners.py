"""The optimizers that every transform must hold with, bare and put together by optax."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from tests import third_party


@dataclasses.dataclass(frozen=True)
class Inner:
    """An optimizer to wrap.

    Attributes:
      name: for the test's name.
      tx: the optimizer.
      couples: what happens to a weight depends on leaves besides its own.
      copies: its state holds the weights a second time.
    """

    name: str
    tx: optax.GradientTransformation
    couples: bool = False
    copies: bool = False

    def __repr__(self) -> str:
        return self.name

    @functools.cached_property
    def update(self) -> Callable[..., Any]:
        """Its update, compiled once: the same program alone and inside every transform."""
        return jax.jit(third_party.inner(self.tx).update)


INNERS = (
    Inner("sgd", optax.sgd(0.1)),
    Inner("momentum", optax.sgd(0.1, momentum=0.9, nesterov=True)),
    Inner("adam", optax.adam(0.1)),
    Inner("adamw", optax.adamw(0.1, weight_decay=0.1)),
    Inner("lion", optax.lion(0.01, weight_decay=0.1)),
    Inner("lamb", optax.lamb(0.1, weight_decay=0.1)),
    Inner("adafactor", optax.adafactor(0.1, min_dim_size_to_factor=8)),
    Inner("muon", optax.contrib.muon(0.1, weight_decay=0.1)),
    Inner("schedule_free_adamw", optax.contrib.schedule_free_adamw(0.1), copies=True),
    Inner("decay", optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))),
    Inner("decay_last", optax.chain(optax.adam(0.1), optax.add_decayed_weights(-0.1))),
    Inner("clip", optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)), couples=True),
    Inner("ema", optax.chain(optax.sgd(0.1), optax.ema(0.9))),
    Inner("inject", optax.inject_hyperparams(optax.adamw)(optax.linear_schedule(0.1, 0.0, 9))),
    Inner("apply_if_finite", optax.apply_if_finite(optax.adam(0.1), 3)),
    Inner("apply_every", optax.chain(optax.sgd(0.1), optax.apply_every(2))),
    Inner(
        "multi_transform",
        optax.multi_transform(
            {"matrices": optax.adamw(0.1), "rest": optax.sgd(0.1)},
            lambda params: {
                "hidden": {"kernel": "matrices", "bias": "rest"},
                "norm": "rest",
                "out": "matrices",
            },
        ),
    ),
    Inner(
        "masked",
        optax.chain(
            optax.sgd(0.1),
            optax.masked(
                optax.add_decayed_weights(-0.1),
                {"hidden": {"kernel": True, "bias": False}, "norm": False, "out": True},
            ),
        ),
    ),
    Inner("prodigy", optax.contrib.prodigy(0.1), couples=True, copies=True),
    Inner("dog", optax.contrib.dog(0.1), couples=True, copies=True),
)
