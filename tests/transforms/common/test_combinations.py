"""Every transform inside what optax puts around an optimizer: it trains as it does alone."""

import dataclasses
from collections.abc import Callable
from itertools import starmap
from operator import or_
from typing import Any

import jax
import optax
import pytest

from tests.members import TRANSFORMS, TransformRow
from tests.transforms.common import rig
from tests.transforms.common.rows import is_core, is_family, marked

Build = Callable[[TransformRow], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Around:
    """One combination.

    Attributes:
      name: of what optax puts around.
      build: the optimizer with the row's transform inside.
      repeat: micro-steps that make a step.
      compiled: it has a ``lax.cond`` of its own, which outside jit would compile in every call.
      apart: each layer has a transform of its own, which does not see the others.
      asked_of: the rows with which it stands in the fast suite.
    """

    name: str
    build: Build
    repeat: int = 1
    compiled: bool = False
    apart: bool = False
    asked_of: Callable[[TransformRow], bool] = lambda row: True

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
    Around("multi_steps", _multi_steps, repeat=2, compiled=True, asked_of=is_family),
    Around(
        "apply_if_finite",
        lambda row: optax.apply_if_finite(_alone(row), 3),
        compiled=True,
        asked_of=is_core,
    ),
    Around("inject_hyperparams", _injected),
    Around(
        "multi_transform",
        lambda row: optax.multi_transform(
            {"one": _on(row, "hidden"), "two": _on(row, "out"), "rest": rig.SGD},
            {"hidden": "one", "norm": "rest", "out": "two"},
        ),
        apart=True,
    ),
    Around(
        "masked",
        lambda row: optax.chain(
            optax.masked(_on(row, "hidden", "out"), {"hidden": True, "norm": False, "out": True}),
            optax.masked(rig.SGD, {"hidden": False, "norm": True, "out": False}),
        ),
    ),
)


def _expected(row: TransformRow, around: Around) -> tuple[rig.Call, ...]:
    """The row's own training; layers that compete for live weights do so if they meet."""
    whole = rig.trained(row, rig.SGD)
    if not (around.apart and "moves counts" in row.needs):
        return whole
    for branch in ("hidden", "out"):
        params = {branch: rig.parameters()[branch]}
        parts = rig.train(rig.transform(row, rig.SGD, params), params=params)
        whole = tuple(starmap(_overlaid, zip(whole, parts, strict=True)))
    return whole


def _overlaid(whole: rig.Call, part: rig.Call) -> rig.Call:
    return rig.Call(*starmap(or_, zip(whole, part, strict=True)))


PAIRS = [marked(r, around, fast=around.asked_of(r)) for r in TRANSFORMS for around in COMBINATIONS]


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(("row", "around"), PAIRS)
def test_it_trains_as_it_does_alone(row: TransformRow, around: Around):
    tx = around.build(row)
    step = jax.jit(rig.step_of(tx)) if around.compiled else rig.step_of(tx)
    calls = rig.train(tx, step, repeat=around.repeat)
    for found, expected in zip(calls, _expected(row, around), strict=True):
        assert rig.equal(found.masks, expected.masks)
        assert rig.equal(found.params, expected.params)
        assert rig.equal(found.final, expected.final)
