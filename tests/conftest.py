"""Fixtures that every test may use. How strict the suite is stands in the root conftest."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest

import jaxprune


@pytest.fixture
def key() -> jax.Array:
    """One fixed key; split it for more."""
    return jax.random.key(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded numpy generator, for inputs that are made on the host."""
    return np.random.default_rng(0)


@pytest.fixture(params=["explicit", "auto"])
def mesh(request: pytest.FixtureRequest) -> jax.sharding.Mesh:
    """A 4 x 2 mesh of virtual devices with axes `data` and `model`, of either axis type."""
    kinds = {"explicit": jax.sharding.AxisType.Explicit, "auto": jax.sharding.AxisType.Auto}
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kinds[request.param],) * 2)


@pytest.fixture
def asked_for_checks() -> Iterator[None]:
    """Turn on the checks of values inside jit."""
    with jaxprune.debug_checks():
        yield
