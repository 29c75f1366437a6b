"""Dual importance (D-Pruner), and the error that a weight's removal leaves."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import scores

WEIGHT = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)
PARAMS: Any = {"kernel": jnp.asarray(WEIGHT)}
BATCHES = [jnp.array([[1.0, 2.0]]), jnp.array([[-1.0, 0.5]])]
GENERAL: Any = {"kernel": jnp.array([[0.5, 1.0], [2.0, 0.0]])}


def loss(params: Any, x: Any) -> Any:
    return 0.5 * jnp.sum((x @ params["kernel"]) ** 2)


def slopes() -> list[np.ndarray]:
    return [np.asarray(x.T @ (x @ WEIGHT)) for x in BATCHES]


def removal(grads: list[np.ndarray]) -> np.ndarray:
    products = [g * WEIGHT for g in grads]
    return np.mean([np.abs(p + p**2 / 2) for p in products], axis=0)


def dual(**options: Any) -> Any:
    found: Any = scores.dual_importance(loss, PARAMS, BATCHES, **options)
    return found["kernel"]


def test_without_general_importance_it_is_the_change_of_the_loss() -> None:
    plain = dual()
    np.testing.assert_allclose(plain, removal(slopes()), rtol=1e-5)
    np.testing.assert_array_equal(plain, dual(general=GENERAL, penalty=0.0))


@pytest.mark.parametrize("exact", [True, False])
def test_general_importance_pulls_through_the_hessian_or_its_diagonal(exact: bool) -> None:
    kept, factor = np.asarray(GENERAL["kernel"]), 2 * 0.1 * 0.5**2
    grads = []
    for g, x in zip(slopes(), BATCHES, strict=True):
        hessian = np.asarray(x.T @ x)  # of each output's inputs
        bend = hessian @ (kept * g) if exact else g**2 * kept * g
        grads.append(g + factor * bend)
    found = dual(general=GENERAL, penalty=0.1, rate=0.5, exact=exact)
    np.testing.assert_allclose(found, removal(grads), rtol=1e-5)
    assert np.abs(found - dual()).max() > 0.1


def test_general_importance_of_other_shapes_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        dual(general={"kernel": jnp.ones(2)})
    assert str(caught.value) == (
        "general has shape (2,) at 'kernel', whose weight has shape (2, 2). Pass a score of every "
        "prunable weight, or restrict where=."
    )
    with pytest.raises(ValueError, match="general has nothing at 'kernel', whose weight has shape"):
        dual(general={})


def test_obs_divides_by_the_pivots_of_the_inverse() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5)).astype(np.float32)
    x[:, 3] = 0.0
    weight = rng.normal(size=(5, 3)).astype(np.float32)
    gram = (x.T @ x).astype(np.float64)
    alive = gram + np.diag(np.where(np.diag(gram) == 0, 1.0, 0.0))
    damped = alive + 0.01 * np.diag(alive).mean() * np.eye(5)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    want = weight**2 / np.diag(upper)[:, None] ** 2
    want[3] = 0.0
    found = scores.obs(jnp.asarray(weight), jnp.asarray(gram, jnp.float32))
    np.testing.assert_allclose(found, want, rtol=1e-3)
