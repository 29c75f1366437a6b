"""The suite is stricter than users need to be. Set here, once, for every test."""

import os

# Before jax is imported: a mesh of 8 on any machine, and no accelerator unless asked for.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
_flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _flags:
    os.environ["XLA_FLAGS"] = f"{_flags} --xla_force_host_platform_device_count=8".strip()

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

from tests.third_party import lenient

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# No deadline, since the first example of each shape compiles; the same examples on every run.
hypothesis.settings.register_profile(
    "jaxprune", deadline=None, derandomize=True, max_examples=25, print_blob=True
)
hypothesis.settings.load_profile("jaxprune")


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """Run the whole test with jax's own promotion, as users do: models and snippets need it."""
    with lenient():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Run a docstring's example, and a test so marked, as a user will."""
    marked = item.get_closest_marker("standard_promotion") is not None
    if marked or isinstance(item, pytest.DoctestItem):
        with lenient():
            return (yield)
    return (yield)


_MAPS = Path("/proc/self/maps")
_MANY_MAPS = 30_000  # Linux lets a process have 65,530, and every compiled program takes several


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Let go of compiled programs between files, before the process runs out of maps."""
    leaving = nextitem is not None and nextitem.path != item.path
    if leaving and _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MANY_MAPS:
        jax.clear_caches()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `real(probe)` for the reason that its probe gives, if it gives one."""
    for mark in item.iter_markers("real"):
        if len(mark.args) != 1 or not callable(mark.args[0]):
            raise pytest.UsageError(f"{item.nodeid}: write @pytest.mark.real.with_args(probe)")
        reason = mark.args[0]()
        if reason is not None:
            pytest.skip(f"real data: {reason}")
