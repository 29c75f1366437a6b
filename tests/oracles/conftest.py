"""Recordings of the methods' own reference implementations.

The folder is taken from the environment variable `JAXPRUNE_ORACLES`; the default is the copy beside
this file. Other recordings of the same form run through the same tests: nothing here depends on
names or numbers that are not read from the files.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

COMMITTED = Path(__file__).parent / "data"


@dataclasses.dataclass(frozen=True)
class Recording:
    """The arrays of one recording by name, and the settings that they were made with."""

    arrays: dict[str, np.ndarray]
    settings: Any

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def matches(self, pattern: str) -> Iterator[re.Match[str]]:
        """The names that match a regular expression as a whole; at least one has to."""
        found = [match for name in self.arrays if (match := re.fullmatch(pattern, name))]
        assert found, f"no array is called {pattern}"
        yield from found

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays below `prefix/`, by the rest of their name."""
        return {m[1]: self[m[0]] for m in self.matches(f"{re.escape(prefix)}/([^/]+)")}


def load(folder: Path, name: str) -> Recording:
    """Read one recording; a file that is missing is an error, not a reason to skip."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    described = json.loads((folder / f"{name}.json").read_text())
    key = "hyper" if "hyper" in described else "hyperparameters"
    return Recording(arrays, described[key])


@pytest.fixture
def recorded() -> Callable[[str], Recording]:
    """A function that reads a recording by name."""
    folder = Path(os.environ.get("JAXPRUNE_ORACLES", COMMITTED))
    return lambda name: load(folder, name)
