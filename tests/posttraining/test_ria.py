"""What RIA promises beyond the common checks."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import posttraining, scores
from tests.posttraining.problems import problem

PAIRS = posttraining.Target(0.5, jaxprune.NM(2, 4))


def test_outputs_and_inputs_without_weights_divide_nothing_by_zero() -> None:
    weight, inputs = problem()
    empty = weight.at[2].set(0.0).at[:, 1].set(0.0)
    found = posttraining.ria().scores(empty, inputs)
    assert jnp.isfinite(found).all()
    assert not found[2].any()
    assert not found[:, 1].any()


def test_a_scaled_output_or_input_keeps_half_of_its_score() -> None:
    weight, inputs = problem()
    assert inputs.squares is not None
    plain = scores.ria(weight, inputs.squares, power=0.0)
    size = np.abs(weight)
    np.testing.assert_allclose(plain, size / size.sum(0) + size / size.sum(1, keepdims=True), 1e-5)
    factor = jnp.sqrt(inputs.squares)[:, None]
    np.testing.assert_allclose(scores.ria(weight, inputs.squares, power=1.0), plain * factor, 1e-5)


def test_every_group_has_one_input_of_each_quarter() -> None:
    strength = np.random.default_rng(0).permutation(16) * 1.0
    order = posttraining.input_order(jnp.asarray(strength, jnp.float32)[:, None], 4)
    dealt = strength[np.asarray(order)].reshape(4, 4)
    np.testing.assert_array_equal(dealt // 4, [[0, 1, 2, 3]] * 4)
    assert dealt[:, 0].tolist() == [0, 1, 2, 3]
    assert dealt[:, 1].tolist() == [7, 6, 5, 4]


def test_permuted_groups_keep_more_and_obey_the_pattern_in_their_order() -> None:
    weight, inputs = problem()
    method = posttraining.ria(permute=True)
    mask = method(weight, inputs, PAIRS).mask
    found = method.scores(weight, inputs)
    groups = np.asarray(mask)[np.asarray(posttraining.input_order(found, 4))].reshape(4, 4, 6)
    assert (groups.sum(1) == 2).all()
    assert (np.asarray(mask).reshape(4, 4, 6).sum(1) != 2).any()
    plain = posttraining.ria()(weight, inputs, PAIRS).mask
    assert found[mask].sum() > found[plain].sum()


def test_inputs_that_do_not_fill_the_groups_are_refused() -> None:
    with pytest.raises(ValueError) as caught:
        posttraining.input_order(jnp.ones((6, 2)), 4)
    assert str(caught.value) == (
        "input_order deals 6 inputs to groups of 4, which is not possible: 6 is not a multiple of "
        "4. Use permute=False, or another pattern."
    )
