"""What GBLM-Pruner promises beyond the common checks."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import posttraining, scores
from tests.posttraining.problems import problem

HALF = posttraining.Target(0.5)


def test_without_gradient_it_is_wanda() -> None:
    weight, inputs = problem()
    flat = inputs._replace(gradient=jnp.zeros_like(weight))
    got = posttraining.gblm()(weight, flat, HALF)
    np.testing.assert_array_equal(got.mask, posttraining.wanda()(weight, inputs, HALF).mask)
    other = posttraining.gblm()(weight, inputs, HALF)
    assert (other.mask != got.mask).any()


def test_without_inputs_it_is_the_gradient_alone() -> None:
    weight, inputs = problem()
    silent = inputs._replace(squares=jnp.zeros(16))
    got = posttraining.gblm()(weight, silent, HALF)
    alone = posttraining.gblm(gradient_only=True)(weight, inputs, HALF)
    np.testing.assert_array_equal(got.mask, alone.mask)


def test_inputs_are_divided_by_the_number_of_sequences() -> None:
    weight, inputs = problem()
    assert inputs.squares is not None
    more = inputs._replace(squares=inputs.squares * 4, sequences=inputs.sequences * 4)
    method = posttraining.gblm()
    np.testing.assert_allclose(
        method.scores(weight, inputs), method.scores(weight, more), rtol=1e-6
    )
    louder = method.scores(weight, inputs._replace(squares=inputs.squares * 4))
    size, norm = jnp.abs(weight), jnp.sqrt(inputs.squares / 2)[:, None]
    np.testing.assert_allclose(louder, size * (2 * norm + inputs.gradient), rtol=1e-5)


def test_another_order_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        scores.gradient_norm(lambda p, x: p["kernel"].sum(), {}, [1], order=3)
    assert str(caught.value) == (
        "order must be 1 or 2, got 3. It is the norm over the batches: 1 sums the absolute values, "
        "2 takes the root of the sum of squares."
    )
