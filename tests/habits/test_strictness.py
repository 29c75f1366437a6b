"""The suite is as strict as the root conftest says: each line of it bites."""

import warnings

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.third_party import inner


def test_a_sum_of_two_dtypes_raises():
    with pytest.raises(Exception, match="no available implicit dtype promotion path"):
        _ = jnp.ones(3, jnp.float32) + jnp.ones(3, jnp.bfloat16)


def test_a_sum_of_two_ranks_raises():
    with pytest.raises(ValueError, match="jax_numpy_rank_promotion"):
        _ = jnp.ones(3) + jnp.ones((2, 3))


def test_an_inner_optimizer_is_lenient_inside_only():
    def update(weight: jax.Array) -> jax.Array:
        tx = inner(optax.adam(0.1))
        updates, _ = tx.update(weight, tx.init(weight))
        return jax.tree.leaves(updates)[0]

    assert jax.jit(update)(jnp.ones(3)).tolist() == pytest.approx([-0.1] * 3, rel=1e-4)
    with pytest.raises(Exception, match="no available implicit dtype promotion path"):
        jax.jit(lambda x: update(x) + jnp.ones(3, jnp.bfloat16))(jnp.ones(3))


@pytest.mark.usefixtures("as_a_user")
def test_a_test_may_run_as_a_user():
    assert (jnp.ones(3, jnp.float32) + jnp.ones((2, 3), jnp.bfloat16)).shape == (2, 3)


def test_a_warning_raises():
    with pytest.raises(UserWarning, match="noticed"):
        warnings.warn("noticed", stacklevel=1)


def test_there_are_eight_devices():
    assert jax.device_count() == 8


@pytest.mark.parametrize("reason", [None, "no data set on this machine"])
def test_a_real_test_is_skipped_for_the_reason_that_its_probe_gives(
    request: pytest.FixtureRequest, reason: str | None
):
    manager = request.config.pluginmanager
    conftest = manager.get_plugin(str(request.config.rootpath / "conftest.py"))
    assert conftest is not None
    request.node.add_marker(pytest.mark.real(lambda: reason))
    if reason is None:
        conftest.pytest_runtest_setup(request.node)
    else:
        with pytest.raises(pytest.skip.Exception, match=f"real data: {reason}"):
            conftest.pytest_runtest_setup(request.node)
