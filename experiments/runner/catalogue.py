"""Find experiments: each is a folder with a file `experiment.py` that says `EXPERIMENT = ...`."""

import importlib
from pathlib import Path

from experiments.runner.api import Experiment, UsageError

ROOT = Path(__file__).parents[1]


def names() -> list[str]:
    """Return the names of all experiments."""
    return sorted(path.parent.name for path in ROOT.glob("*/experiment.py"))


def find(name: str) -> Experiment:
    """Import an experiment by its name."""
    known = names()
    if name not in known:
        raise UsageError(f"no experiment is named {name!r}; there are {', '.join(known)}.")
    experiment: Experiment = importlib.import_module(f"experiments.{name}.experiment").EXPERIMENT
    return experiment
