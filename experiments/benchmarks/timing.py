"""Interleaved medians, and the file that keeps them."""

import dataclasses
import json
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"
_START = time.perf_counter()
Run = Callable[[], Any]
"""Does the work once; returns the arrays to wait for."""


def said(what: str) -> None:
    """Print how far a benchmark is, and after how long."""
    print(f"{time.perf_counter() - _START:.1f} s: {what}", file=sys.stderr, flush=True)


def seconds(run: Run, calls: int = 1) -> float:
    """Time ``calls`` runs in a row, waited for once at the end; per run."""
    start = time.perf_counter()
    for _ in range(calls - 1):
        run()
    jax.block_until_ready(run())
    return (time.perf_counter() - start) / calls


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
      least: shortest sample in seconds; quicker runs are repeated within a sample.
      total: time for all samples of one case in seconds, at least ``rounds[0]`` of them.
      rounds: fewest and most samples of a case.
      limit: a case whose first run takes longer than this is dropped.
    """

    least: float = 0.01
    total: float = 4.0
    rounds: tuple[int, int] = (5, 41)
    limit: float = 60.0


def medians(cases: Mapping[str, Run], effort: Effort) -> dict[str, float | None]:
    """Return the median time of each case in seconds; None for a dropped one.

    The samples of all cases are interleaved, so that a slow minute of the machine hits them alike.
    """
    calls: dict[str, int] = {}
    rounds: dict[str, int] = {}
    for name, run in cases.items():
        if seconds(run) > effort.limit or (once := seconds(run)) > effort.limit:
            continue
        calls[name] = max(1, round(effort.least / once))
        wanted = round(effort.total / (once * calls[name]))
        rounds[name] = min(max(wanted, effort.rounds[0]), effort.rounds[1])
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(max(rounds.values(), default=0)):
        for name in samples:
            if i < rounds[name]:
                samples[name].append(seconds(cases[name], calls[name]))
    found = {name: statistics.median(times) for name, times in samples.items()}
    return {name: found.get(name) for name in cases}


def amortised(step: float | None, update: float | None, period: int) -> float | None:
    """Return the mean step of a run in which one step of ``period`` is an update."""
    return None if step is None or update is None else step + (update - step) / period


def device() -> dict[str, Any]:
    """Describe where this process runs."""
    first = jax.devices()[0]
    cores = f"{os.cpu_count()} cores"
    return {
        "device": f"CPU, {cores}" if first.platform == "cpu" else first.device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "architecture": platform.machine(),
    }


def save(section: str, settings: Sequence[str], content: Mapping[str, Any], folder: Path) -> Path:
    """Put one benchmark's result into the file of this device, beside the other benchmarks'.

    Args:
      section: the benchmark's module.
      settings: its command line, kept with the result as `command` writes it.
      content: what was measured.
      folder: holds one file for each device.

    Returns:
      The path of the file.
    """
    where, path = device(), _path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    known[section] = {**where, "command": command(section, settings), **content}
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    return path


def command(section: str, settings: Sequence[str]) -> str:
    """Write the command that measures again: without the paths it writes to, with `XLA_FLAGS`."""
    kept = list(settings)
    for option in ("--output", "--runs", "--table"):
        if option in kept:
            at = kept.index(option)
            del kept[at : at + 2]
    flags = os.environ.get("XLA_FLAGS")
    before = f"XLA_FLAGS={shlex.quote(flags)} " if flags else ""
    return before + shlex.join(["python", "-m", f"experiments.benchmarks.{section}", *kept])


def runs(section: str, folder: Path) -> list[dict[str, Any]]:
    """Return what this device's file has of a benchmark: the last run, then the earlier ones."""
    path = _path(folder)
    last = json.loads(path.read_text()).get(section) if path.exists() else None
    return [] if last is None else split(last)


def split(section: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the runs of a section: the last one, then those of which it has kept a part."""
    last = {key: value for key, value in section.items() if key != "earlier"}
    return [last, *section.get("earlier", ())]


def _path(folder: Path) -> Path:
    return folder / f"{re.sub('[^a-z0-9]+', '-', device()['device'].lower()).strip('-')}.json"


def shown(time_s: float | None) -> str:
    """Write a time with a unit that suits it."""
    if time_s is None:
        return "-"
    return f"{time_s * 1e3:.3g} ms" if time_s < 1 else f"{time_s:.3g} s"


def ratio(a: float | None, b: float | None) -> str:
    """Write a / b, or a dash where either is missing."""
    return "-" if a is None or b is None else f"{a / b:.3g}"
