"""A run that does nothing but save, until it is killed: `python -m tests.checkpoint.saver DIR`."""

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np

from jaxprune.checkpoint import latest_step, restore, save

SIZE = 300_000


def state_at(step: int) -> dict[str, np.ndarray]:
    """The state at a step: weights that do not compress, and their mask."""
    weights = np.random.default_rng(step).normal(size=SIZE)
    return {"weights": weights, "mask": weights > 0, "step": np.asarray(step)}


def go_on(directory: Path) -> None:
    """Restore the newest step, if there is one, and save all that follow."""
    step = latest_step(directory)
    if step is not None:
        restore(directory, state_at(0))
    while True:
        step = 0 if step is None else step + 1
        state = state_at(step)
        print(step, flush=True)
        save(directory, step, state)


if __name__ == "__main__":
    go_on(Path(sys.argv[1]))
