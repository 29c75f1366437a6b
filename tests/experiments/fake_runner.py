"""An experiment of three cells that take no time, for the tests of the runner.

Run as a program it is the process that is killed while the cell in `KILLED_AT` runs.
"""

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.runner import catalogue, cli, page
from experiments.runner.api import Cell, Claim, Context, Experiment, Results
from experiments.runner.statistics import sample

KILLED_AT = "JAXPRUNE_TEST_KILLED_AT"
NAMES = ("a", "b-90", "c-97.5")
ran: list[str] = []
changes: dict[str, Any] = {}  # of the settings of every cell
values: dict[str, Any] = {}  # what a cell returns instead, or the error that it raises


def experiment() -> Experiment:
    """Return the experiment."""
    return Experiment(
        name="fake",
        about="Three cells",
        seeds=3,
        sources={"numbers": lambda: {"x": np.arange(4.0)}},
        cells=lambda quick: [_cell(name, quick) for name in NAMES],
        section=_section,
        figures=lambda results: {},
    )


def _cell(name: str, quick: bool) -> Cell:
    def run(context: Context) -> Mapping[str, Any]:
        if os.environ.get(KILLED_AT) == name:
            os.kill(os.getpid(), signal.SIGKILL)
        ran.append(name)
        context.tell(1, 1, "done")
        found = values.get(name, {"accuracy": [0.5 + 0.1 * seed for seed in context.seeds]})
        if isinstance(found, Exception):
            raise found
        return found

    return Cell(name, {"quick": quick, "epochs": 3, **changes}, run)


def _section(results: Results) -> str:
    rows = [[name, sample(r.values["accuracy"]).shown()] for name, r in results.items()]
    claim = Claim("All is well", "nobody", "it is", "reproduced")
    return page.table(["cell", "accuracy"], rows) + "\n" + page.claims([claim])


def install(patch: Any) -> None:
    """Make it the only experiment."""
    patch.setattr(catalogue, "names", lambda: ["fake"])
    patch.setattr(catalogue, "find", lambda name: experiment())


if __name__ == "__main__":
    catalogue.names = lambda: ["fake"]
    catalogue.find = lambda name: experiment()
    sys.exit(cli.main(sys.argv[1:]))
