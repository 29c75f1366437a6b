"""The checks of this folder run over the transforms of the member table."""

import pytest

from tests.members import TRANSFORMS

CORE = TRANSFORMS[:2]  # those that store masks and never bring a weight back


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a module's checks over every transform if it says so, else over those of the core."""
    if "row" in metafunc.fixturenames:
        rows = TRANSFORMS if getattr(metafunc.module, "EVERY_TRANSFORM", False) else CORE
        metafunc.parametrize("row", rows, ids=repr)
