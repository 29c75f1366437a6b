"""What Wanda and its variant promise beyond the common checks."""

import jax.numpy as jnp
import numpy as np

from jaxprune import posttraining
from tests.posttraining.problems import problem

HALF = posttraining.Target(0.5)


def test_outputs_are_pruned_on_their_own() -> None:
    weight, inputs = problem()
    louder = weight * jnp.array([[1e6, 1.0, 1.0, 1.0, 1.0, 1.0]])
    wanda = posttraining.wanda()
    np.testing.assert_array_equal(
        wanda(weight, inputs, HALF).mask, wanda(louder, inputs, HALF).mask
    )
    whole = posttraining.wanda(select=posttraining.per_matrix)
    assert whole(louder, inputs, HALF).mask[:, 0].all()


def test_a_loud_input_is_kept_in_every_output() -> None:
    weight, inputs = problem()
    assert inputs.squares is not None
    assert not posttraining.magnitude()(weight, inputs, HALF).mask[5].all()
    louder = inputs._replace(squares=inputs.squares.at[5].mul(1e6))
    assert posttraining.wanda()(weight, louder, HALF).mask[5].all()


def test_the_mask_follows_the_order_of_the_inputs() -> None:
    weight, inputs = problem()
    order = np.random.default_rng(1).permutation(16)
    assert inputs.squares is not None
    moved = inputs._replace(squares=inputs.squares[order])
    mask = posttraining.wanda()(weight, inputs, HALF).mask
    np.testing.assert_array_equal(
        posttraining.wanda()(weight[order], moved, HALF).mask, mask[order]
    )


def test_the_variant_prunes_the_same_share_of_every_sum() -> None:
    weight, inputs = problem()
    scores = posttraining.wanda().scores(weight, inputs)
    found = posttraining.cumulative_search(scores, 0.5)
    assert abs(float(found.sparsity) - 0.5) <= 0.03  # of 96 weights
    assert float(found.sparsity) == np.float32((~np.asarray(found.mask)).mean())
    total, gone = scores.sum(0), jnp.where(found.mask, 0.0, scores).sum(0)
    smallest_kept = jnp.where(found.mask, scores, jnp.inf).min(0)
    assert (gone <= found.share * total).all()
    assert (gone + smallest_kept > found.share * total).all()
    assert len(set(np.asarray(found.mask).sum(0).tolist())) > 1


def test_the_variant_spares_an_output_whose_smallest_score_is_too_large() -> None:
    assert posttraining.cumulative(jnp.ones((16, 6)), 0.0).all()
    weight, inputs = problem()
    scores = posttraining.wanda().scores(weight, inputs)
    assert not posttraining.cumulative(scores.at[:, 2].set(0.0), 0.5)[:, 2].any()
