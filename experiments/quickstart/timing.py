"""Time training steps side by side, so that a busy machine hits all of them alike."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class StepTime(NamedTuple):
    """How long a step takes, as medians over the rounds."""

    milliseconds: float
    ratio: float  # to the reference in the same round


def side_by_side(calls: Mapping[str, Callable[[], None]], *, rounds: int) -> dict[str, StepTime]:
    """Time calls in turn, for some rounds; the first one is the reference.

    Args:
        calls: What to time: each runs one step and waits until it is done.
        rounds: How often each runs after a warm-up, in an order that rotates.

    Returns:
        The time of each call, and its ratio to the reference's.
    """
    names = list(calls)
    for call in calls.values():
        call()
    seconds = {name: np.zeros(rounds) for name in names}
    for index in range(rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.perf_counter()
            calls[name]()
            seconds[name][index] = time.perf_counter() - began
    reference = seconds[names[0]]
    return {
        name: StepTime(1e3 * float(np.median(taken)), float(np.median(taken / reference)))
        for name, taken in seconds.items()
    }


def one_in(
    every: int, rare: Mapping[str, StepTime], usual: Mapping[str, StepTime]
) -> dict[str, StepTime]:
    """Return the mean step, of which one in `every` is the rare one."""
    return {
        name: StepTime(
            *((r + (every - 1) * u) / every for r, u in zip(rare[name], usual[name], strict=True))
        )
        for name in usual
    }
