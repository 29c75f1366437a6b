"""Fixtures of kernels' tests."""

from collections.abc import Iterator
from typing import Any

import pytest

from jaxprune.kernels._tpu import pltpu


@pytest.fixture
def watched(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Interpret as a TPU of two cores that copies as late as it may, and fail for a race.

    What was not written is NaN.
    """
    yield pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    # Later versions of jax raise.
    assert "RACE DETECTED" not in capsys.readouterr().out
