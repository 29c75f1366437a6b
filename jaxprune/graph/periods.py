"""Where a list of steps repeats itself: the blocks of a model."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxprune.graph.steps import Step

_FEWEST = 2  # repetitions that make blocks


class Run(NamedTuple):
    """Blocks of equal length, one after the other."""

    start: int
    length: int
    times: int

    def cuts(self) -> list[int]:
        """Return the places between blocks, and before the first and after the last."""
        return [self.start + i * self.length for i in range(self.times + 1)]


def cuts_of(steps: Sequence[Step], live_bytes: Callable[[int], int]) -> list[Run]:
    """Return the repeated blocks of a model, outermost first, and of what lies before and after.

    Args:
      steps: in order.
      live_bytes: the size of what is alive before a step; blocks begin where it is least.
    """
    keys = _numbered([step.key for step in steps])
    products = [step.product for step in steps]

    def inside(start: int, stop: int) -> list[Run]:
        found = _longest(keys[start:stop], products[start:stop])
        if found is None:
            return []
        run = _placed(found._replace(start=found.start + start), stop, keys, live_bytes)
        end = run.start + run.length * run.times
        return [run, *inside(start, run.start), *inside(end, stop)]

    return inside(0, len(steps))


def _numbered(keys: Sequence[object]) -> list[int]:
    known: dict[object, int] = {}
    return [known.setdefault(key, len(known)) for key in keys]


def _longest(keys: Sequence[int], products: Sequence[bool]) -> Run | None:
    """Return the run of equal blocks that covers most steps; each block has a product."""
    best: Run | None = None
    covered = 0
    for length in range(1, len(keys) // _FEWEST + 1):
        if (len(keys) // length) * length <= covered:
            continue
        start, same = 0, 0
        for i in range(len(keys) - length + 1):
            equal = i + length < len(keys) and keys[i] == keys[i + length]
            if equal:
                same += 1
                continue
            count = same // length + 1
            block = products[start : start + length]
            if count >= _FEWEST and count * length > covered and any(block):
                best, covered = Run(start, length, count), count * length
            start, same = i + 1, 0
    return best


def _placed(run: Run, stop: int, keys: Sequence[int], live_bytes: Callable[[int], int]) -> Run:
    """Move the blocks, as far as the repetition goes, to where the least is alive between them."""
    end = run.start + run.length * run.times
    slack = 0
    while end + slack < stop and keys[end + slack] == keys[end + slack - run.length]:
        slack += 1
    starts = range(run.start, run.start + min(slack, run.length - 1) + 1)
    best = min(starts, key=lambda start: (live_bytes(start + run.length), start))
    return run._replace(start=best)
