"""Compiling many programs at once, and interleaved medians of their times."""

import concurrent.futures
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

Name = TypeVar("Name")
Run = Callable[[], Any]
"""Starts the work once; returns the arrays to wait for."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
      sample: shortest sample in seconds: quicker programs are started many times in a row, and
        waited for once, so that starting them costs nothing.
      seconds: for all samples of one product.
      rounds: fewest and most samples.
    """

    sample: float = 0.01
    seconds: float = 1.0
    rounds: tuple[int, int] = (5, 21)


def compile_all(programs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Call every function, several at a time; in place of a result an exception that it raised."""

    def tried(program: Callable[[], Any]) -> Any:
        try:
            return program()
        except Exception as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(tried, programs))


def medians(runs: Mapping[Name, Run], effort: Effort) -> dict[Name, float]:
    """Return the median seconds of each run.

    Samples of all runs are interleaved, so that a slow moment of the machine hits them alike.
    """
    repeats = {}
    for name, run in runs.items():
        _sample(run, 1)
        once = min(_sample(run, 1) for _ in range(2))
        # A first guess contains what starting costs; the second sample tells what a run takes.
        some = max(1, min(round(effort.sample / once), 1000))
        each = _sample(run, some)
        repeats[name] = max(1, min(round(effort.sample / each), 1000))
    lengths = [max(effort.sample, _sample(run, repeats[name])) for name, run in runs.items()]
    fewest, most = effort.rounds
    rounds = max(fewest, min(int(effort.seconds / sum(lengths)), most))
    samples: dict[Name, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(_sample(run, repeats[name]))
    return {name: statistics.median(times) for name, times in samples.items()}


def _sample(run: Run, repeats: int) -> float:
    """Return seconds a run, of several in a row."""
    start = time.perf_counter()
    for _ in range(repeats - 1):
        run()
    jax.block_until_ready(run())
    return (time.perf_counter() - start) / repeats
