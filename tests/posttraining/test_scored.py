"""What all methods promise that score weights and keep the best."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import posttraining
from tests.posttraining.problems import problem

METHODS: dict[str, Any] = {
    "magnitude": posttraining.magnitude(),
    "wanda": posttraining.wanda(),
    "variant": posttraining.wanda(select=posttraining.cumulative),
    "ria": posttraining.ria(permute=True),
    "gblm": posttraining.gblm(),
    "inverse": posttraining.gblm(inverse=True, gradient_only=True),
}
HALF = posttraining.Target(0.5)
PAIRS = posttraining.Target(0.5, jaxprune.NM(2, 4))


@pytest.mark.parametrize(
    ("name", "target"),
    [("wanda", HALF), ("variant", HALF), ("ria", PAIRS), ("gblm", PAIRS), ("inverse", PAIRS)],
)
def test_stacked_layers_in_half_precision_are_pruned_as_each_alone(
    name: str, target: posttraining.Target
) -> None:
    layers = [problem(seed) for seed in range(2)]
    weights = jnp.stack([weight for weight, _ in layers]).astype(jnp.bfloat16)
    inputs = jax.tree.map(lambda *each: jnp.stack(each), *(inputs for _, inputs in layers))
    stacked = jax.jit(jax.vmap(lambda w, i: METHODS[name](w, i, target)))(weights, inputs)
    assert stacked.weight.dtype == jnp.bfloat16
    for index, (_, own) in enumerate(layers):
        alone = METHODS[name](weights[index].astype(jnp.float32), own, target)
        np.testing.assert_array_equal(stacked.mask[index], alone.mask)
        assert 0.45 <= (~np.asarray(alone.mask)).mean() <= 0.55
    np.testing.assert_array_equal(
        stacked.weight, jnp.where(stacked.mask, weights, jnp.zeros_like(weights))
    )


@pytest.mark.parametrize("name", ["magnitude", "wanda", "ria"])
def test_louder_inputs_change_nothing(name: str) -> None:
    weight, inputs = problem()
    assert inputs.squares is not None
    louder = inputs._replace(squares=inputs.squares * 256.0, sequences=inputs.sequences * 2)
    masks = [METHODS[name](weight, i, HALF).mask for i in (inputs, louder)]
    np.testing.assert_array_equal(*masks)


def test_inputs_that_are_always_zero_go_first() -> None:
    weight, inputs = problem()
    assert inputs.squares is not None
    dead = inputs._replace(squares=inputs.squares.at[3].set(0.0))
    for name in ("wanda", "ria"):
        mask = METHODS[name](weight, dead, posttraining.Target(0.25)).mask
        assert not mask[3].any()


def test_a_method_has_a_value_that_a_cache_can_hold() -> None:
    assert posttraining.ria(power=1.0) == posttraining.ria(power=1.0)
    assert posttraining.ria(power=1.0) != posttraining.ria()
    assert hash(posttraining.wanda()) == hash(posttraining.wanda())
    assert METHODS["inverse"].needs == ("gradient",)
    assert posttraining.gblm().needs == ("squares", "gradient")
    assert posttraining.magnitude().needs == ()


def error(method: Any, weight: jax.Array, inputs: posttraining.Inputs) -> str:
    with pytest.raises(ValueError) as caught:
        method(weight, inputs, posttraining.Target(0.5))
    return str(caught.value)


def test_what_is_missing_is_named() -> None:
    weight, inputs = problem()
    assert error(posttraining.wanda(), weight, inputs._replace(squares=None)) == (
        "Wanda needs inputs.squares, got None. It is the sum of x² of each input."
    )
    assert error(posttraining.gblm(), weight, inputs._replace(gradient=None)) == (
        "GBLM needs inputs.gradient, got None. It is the norm of the loss's gradients, as "
        "scores.gradient_norm gives it."
    )


def test_other_shapes_are_named() -> None:
    weight, inputs = problem()
    assert error(posttraining.ria(), weight[:8], inputs) == (
        "inputs.squares has shape (16,); a weight of shape (8, 6) needs (8,): the sum of x² of "
        "each input."
    )
    assert error(posttraining.magnitude(), weight[None], inputs) == (
        "Magnitude prunes one matrix (in, out), got a weight of shape (1, 16, 6). Flatten what it "
        "contracts to one axis, and jax.vmap over stacked layers."
    )
