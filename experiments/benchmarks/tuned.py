"""Products of a benchmark that no table of timings knows are measured before it."""

import os
from collections.abc import Sequence
from pathlib import Path

from jaxprune.kernels import autotune, tuning


def ensure(cases: Sequence[autotune.Case], path: Path) -> None:
    """Measure what is unknown, write it to a table, and have that looked up from here on.

    Args:
      cases: products that the benchmark will compute.
      path: of the table, which also gets what was known.
    """
    known = tuning.table()
    unknown = [one for one in cases if not tuning.near(one.product, known)]
    if not unknown:
        return
    effort = autotune.Effort(seconds=0.2)
    found = [m.entry() for m in autotune.measure(unknown, configs=2, effort=effort)]
    path.parent.mkdir(parents=True, exist_ok=True)
    tuning.save([*known, *(entry for entry in found if entry is not None)], path)
    os.environ[tuning.VARIABLE] = str(path)
