"""The optimizers that every transform must hold with, bare and put together by optax."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from optax import contrib

from tests import third_party


@dataclasses.dataclass(frozen=True)
class Inner:
    """An optimizer to wrap.

    Attributes:
      name: for the test's name.
      tx: the optimizer.
      couples: what happens to a weight depends on leaves besides its own.
      copies: its state holds the weights a second time.
      lingers: a grown weight may be zero for more than a step, since some steps are zero, or all
        are of one length and lead back.
    """

    name: str
    tx: optax.GradientTransformation
    couples: bool = False
    copies: bool = False
    lingers: bool = False

    def __repr__(self) -> str:
        return self.name

    @functools.cached_property
    def update(self) -> Callable[..., Any]:
        """Its update, compiled once: the same program alone and inside every transform."""
        return jax.jit(third_party.inner(self.tx).update)


def _told(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformation:
    """An optimizer that asks for the loss, and is told that it is 1."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return tx.update(updates, state, params, value=jax.numpy.float32(1.0))

    return optax.GradientTransformation(tx.init, update)


ALONE = (
    Inner("sgd", optax.sgd(0.1)),
    Inner("momentum", optax.sgd(0.1, momentum=0.9, nesterov=True)),
    Inner("adam", optax.adam(0.1)),
    Inner("adamw", optax.adamw(0.1, weight_decay=0.1)),
    Inner("lion", optax.lion(0.01, weight_decay=0.1), lingers=True),
    Inner("lamb", optax.lamb(0.1, weight_decay=0.1)),
    Inner("adafactor", optax.adafactor(0.1, min_dim_size_to_factor=8)),
    Inner("muon", contrib.muon(0.1, weight_decay=0.1)),
    Inner("prodigy", contrib.prodigy(0.1), couples=True, copies=True),
    Inner("dog", contrib.dog(0.1), couples=True, copies=True),
    Inner("schedule_free_adamw", contrib.schedule_free_adamw(0.1), copies=True),
)

TOGETHER = (
    Inner("decay", optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))),
    Inner("decay_last", optax.chain(optax.adam(0.1), optax.add_decayed_weights(-0.1))),
    Inner("clip", optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)), couples=True),
    Inner("ema", optax.chain(optax.sgd(0.1), optax.ema(0.9))),
    Inner("inject", optax.inject_hyperparams(optax.adamw)(optax.linear_schedule(0.1, 0.0, 9))),
    Inner("apply_if_finite", optax.apply_if_finite(optax.adam(0.1), 3)),
    Inner("apply_every", optax.chain(optax.sgd(0.1), optax.apply_every(2)), lingers=True),
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
)

RARE = (
    Inner("nadam", optax.nadam(0.1)),
    Inner("nadamw", optax.nadamw(0.1, weight_decay=0.1)),
    Inner("radam", optax.radam(0.1)),
    Inner("amsgrad", optax.amsgrad(0.1)),
    Inner("adamax", optax.adamax(0.1)),
    Inner("adamaxw", optax.adamaxw(0.1, weight_decay=0.1)),
    Inner("adabelief", optax.adabelief(0.1)),
    Inner("yogi", optax.yogi(0.1)),
    Inner("novograd", optax.novograd(0.1)),
    Inner("adan", optax.adan(0.1, weight_decay=0.1)),
    Inner("adadelta", optax.adadelta(0.1)),
    Inner("adagrad", optax.adagrad(0.1)),
    Inner("rmsprop", optax.rmsprop(0.1, momentum=0.9)),
    Inner("rprop", optax.rprop(0.1), lingers=True),
    Inner("lars", optax.lars(0.1, weight_decay=0.1)),
    Inner("sm3", optax.sm3(0.1)),
    Inner("fromage", optax.fromage(0.1)),
    Inner("noisy_sgd", optax.noisy_sgd(0.1, eta=0.1, key=0)),
    Inner("sign_sgd", optax.sign_sgd(0.01), lingers=True),
    Inner("optimistic", optax.optimistic_gradient_descent(0.1)),
    Inner("polyak_sgd", _told(optax.polyak_sgd()), couples=True),
    Inner("lbfgs", optax.lbfgs(0.1, linesearch=None), couples=True, copies=True),
    Inner("dowg", contrib.dowg(0.1), couples=True, copies=True),
    Inner("dadapt_adamw", contrib.dadapt_adamw(0.1), couples=True),
    Inner("cocob", contrib.cocob(), copies=True),
    Inner("momo", _told(contrib.momo(0.1)), couples=True, lingers=True),
    Inner("ademamix", contrib.ademamix(0.1)),
    Inner("simplified_ademamix", contrib.simplified_ademamix(0.1)),
    Inner("adopt", contrib.adopt(0.1), lingers=True),
    Inner("galore", contrib.galore(0.1, rank=4), lingers=True),
    Inner("mechanize", contrib.mechanize(optax.sgd(0.1)), couples=True, copies=True),
    Inner("sam", contrib.sam(optax.sgd(0.1), optax.sgd(0.01)), copies=True),
)
"""The others that docs/optax.md lists."""

COMMON = ALONE + TOGETHER
INNERS = COMMON + RARE
ADAM = next(inner for inner in COMMON if inner.name == "adam")
