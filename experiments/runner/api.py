"""What an experiment is: cells that are run, and a section of the page that is made of results."""

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

Arrays = Mapping[str, np.ndarray]
Tell = Callable[[int, int, str], None]


class UsageError(ValueError):
    """What was asked for cannot be done; the text says why, and what can."""


class StoppedError(RuntimeError):
    """The run is being stopped; what this cell has done so far is given up."""


class Context:
    """What a cell is given.

    Attributes:
      data: arrays by source.
      seeds: one run for each of them, in one program.
      quick: whether this is only a rehearsal.
    """

    def __init__(
        self, data: Mapping[str, Arrays], seeds: tuple[int, ...], *, quick: bool = False
    ) -> None:
        self.data, self.seeds, self.quick = data, seeds, quick
        self._shared: _Shared = _Shared({}, threading.Lock())
        self._tell: Tell = lambda done, total, note: None

    def for_cell(self, tell: Tell) -> "Context":
        """Return a context with its own progress that shares all else."""
        other = Context(self.data, self.seeds, quick=self.quick)
        other._shared, other._tell = self._shared, tell
        return other

    def tell(self, done: int, total: int, note: str = "") -> None:
        """Tell how far the cell is.

        Raises:
          StoppedError: the run is being stopped.
        """
        self._tell(done, total, note)

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """Return what ``make`` returned when a cell of this run first asked for the key."""
        with self._shared.lock:
            entry = self._shared.entries.setdefault(key, _Entry(threading.Lock(), []))
        with entry.lock:  # its own, so that others may make other things meanwhile
            if not entry.value:
                entry.value.append(make())
            return entry.value[0]


class _Entry(NamedTuple):
    lock: threading.Lock
    value: list[Any]  # empty until it is made


class _Shared(NamedTuple):
    entries: dict[str, _Entry]
    lock: threading.Lock


@dataclasses.dataclass(frozen=True)
class Cell:
    """The smallest piece of an experiment that is run and kept.

    Attributes:
      name: stem of its file: lower-case letters, digits, dots and dashes.
      settings: all that decides the result, seeds and data apart; JSON.
      run: does it for all seeds, and returns what is kept: JSON, with finite numbers.
    """

    name: str
    settings: Mapping[str, Any]
    run: Callable[[Context], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Result:
    """What is kept of a cell."""

    name: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    device: str
    jax: str
    command: str
    values: Mapping[str, Any]


Results = Mapping[str, Result]
"""Results by the name of the cell; those that were not run are missing."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A published claim, or several, that are put to the test.

    Attributes:
      name: of its folder.
      about: one line.
      seeds: how many, unless told otherwise.
      sources: functions that fetch the data, by name.
      cells: ``quick -> cells``, the most important first.
      section: the text of the page, from results.
      figures: the figures of the page by name, from results.
    """

    name: str
    about: str
    seeds: int
    sources: Mapping[str, Callable[[], Arrays]]
    cells: Callable[[bool], Sequence[Cell]]
    section: Callable[[Results], str]
    figures: Callable[[Results], Mapping[str, Figure]]


class Claim(NamedTuple):
    """A published claim beside what was measured."""

    published: str
    source: str
    measured: str
    verdict: str
