"""An error names the transform that the user has called, not what it is made of."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxprune
from tests.members import TRANSFORMS, TransformRow

SGD = optax.sgd(0.1)
EACH = pytest.mark.parametrize("row", TRANSFORMS, ids=repr)


def parameters() -> dict[str, Any]:
    return {"kernel": jnp.arange(1.0, 257.0).reshape(16, 16)}


@EACH
def test_what_is_no_optimizer(row: TransformRow):
    with pytest.raises(TypeError) as error:
        row.make(0.1, parameters())
    assert str(error.value) == (
        "inner must be an optax optimizer, got float. Wrap one: "
        f"{row.name}(optax.adamw(1e-3), ...)."
    )


@EACH
def test_micro_steps_inside(row: TransformRow):
    micro = optax.MultiSteps(SGD, 2).gradient_transformation()
    tx = row.make(micro, parameters())
    with pytest.raises(ValueError) as error:
        tx.init(parameters())
    assert str(error.value) == (
        "inner holds optax.MultiSteps: the schedule would count micro-steps. Put MultiSteps "
        f"outside: optax.MultiSteps({row.name}(inner, ...), every_k_schedule=k)."
    )


@EACH
def test_a_state_that_something_has_computed_with(row: TransformRow):
    params = parameters()
    state = row.make(SGD, params).init(params)
    computed = state._replace(masks=jax.tree.map(lambda mask: mask.astype(jnp.int32), state.masks))
    with pytest.raises(TypeError) as error:
        jaxprune.check(params, computed)
    assert str(error.value) == (
        f"the stored mask of 'kernel' has dtype int32, not bool: a transform around {row.name} "
        "computes with its state, as optax.contrib.sam does with opaque_mode=False. Put it inside, "
        "around the optimizer."
    )


@EACH
def test_a_run_that_ends_early(row: TransformRow):
    params = parameters()
    problems = jaxprune.check(params, row.make(SGD, params).init(params)).problems
    ends_early = [problem for problem in problems if "training stopped" in problem]
    assert all(problem.startswith(f"{row.name}: ") for problem in ends_early)
    assert ends_early or row.changes in (None, ())
