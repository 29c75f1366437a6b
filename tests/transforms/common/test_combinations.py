"""Every transform inside what optax puts around an optimizer: it trains as it does alone."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
import pytest

from tests.members import TransformRow
from tests.transforms.common import rig

Build = Callable[[TransformRow], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Around:
    """One combination: how it is built, and how many micro-steps make a step."""

    name: str
    build: Build
    repeat: int = 1

    def __repr__(self) -> str:
        return self.name


def _alone(row: TransformRow) -> optax.GradientTransformation:
    return rig.transform(row, rig.SGD)


def _on(row: TransformRow, *branches: str) -> optax.GradientTransformation:
    """The transform for some branches of the model."""
    params = {name: branch for name, branch in rig.parameters().items() if name in branches}
    return rig.transform(row, rig.SGD, params)


def _multi_steps(row: TransformRow) -> optax.GradientTransformation:
    return optax.MultiSteps(_alone(row), every_k_schedule=2).gradient_transformation()


def _injected(row: TransformRow) -> optax.GradientTransformation:
    def build(learning_rate: Any) -> optax.GradientTransformation:
        return rig.transform(row, optax.sgd(learning_rate, momentum=0.5))

    return optax.inject_hyperparams(build)(learning_rate=0.25)


COMBINATIONS = (
    Around("chain", lambda row: optax.chain(optax.clip_by_global_norm(1e9), _alone(row))),
    Around("named_chain", lambda row: optax.named_chain(("sparse", _alone(row)))),
    Around("multi_steps", _multi_steps, repeat=2),
    Around("apply_if_finite", lambda row: optax.apply_if_finite(_alone(row), 3)),
    Around("inject_hyperparams", _injected),
    Around(
        "multi_transform",
        lambda row: optax.multi_transform(
            {"one": _on(row, "hidden"), "two": _on(row, "out"), "rest": rig.SGD},
            {"hidden": "one", "norm": "rest", "out": "two"},
        ),
    ),
    Around(
        "masked",
        lambda row: optax.chain(
            optax.masked(_on(row, "hidden", "out"), {"hidden": True, "norm": False, "out": True}),
            optax.masked(rig.SGD, {"hidden": False, "norm": True, "out": False}),
        ),
    ),
)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("around", COMBINATIONS, ids=repr)
def test_it_trains_as_it_does_alone(row: TransformRow, around: Around):
    tx = around.build(row)
    calls = rig.train(tx, jax.jit(rig.step_of(tx)), repeat=around.repeat)
    for found, expected in zip(calls, rig.trained(row, rig.SGD), strict=True):
        assert rig.equal(found.masks, expected.masks)
        assert rig.equal(found.params, expected.params)
        assert rig.equal(found.final, expected.final)
