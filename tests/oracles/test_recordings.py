"""A recording that is missing is a failure, and the folder can be chosen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAXPRUNE_ORACLES", str(tmp_path))
    return tmp_path


def test_the_folder_is_taken_from_the_environment(folder: Path, recorded: Callable[[str], Any]):
    np.savez(folder / "made.npz", **{"tag/a": np.arange(3)})
    (folder / "made.json").write_text(json.dumps({"hyperparameters": {"rate": 0.1}}))
    data = recorded("made")
    np.testing.assert_array_equal(data.under("tag")["a"], [0, 1, 2])
    assert data.settings == {"rate": 0.1}


def test_a_missing_file_is_an_error(recorded: Callable[[str], Any]):
    with pytest.raises(FileNotFoundError, match="absent"):
        recorded("absent")


def test_a_missing_array_is_an_error(folder: Path, recorded: Callable[[str], Any]):
    np.savez(folder / "made.npz", a=np.arange(3))
    (folder / "made.json").write_text(json.dumps({"hyperparameters": {}}))
    with pytest.raises(AssertionError, match="no array is called tag"):
        recorded("made").under("tag")
