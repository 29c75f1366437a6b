"""Time several training steps side by side, so that a busy machine hits all of them alike."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class StepTime(NamedTuple):
    """How long a step takes."""

    milliseconds: float  # median over the rounds
    ratio: float  # to the first of those compared: median over the rounds of the round's ratio


def side_by_side(
    blocks: Mapping[str, Callable[[], None]], *, calls_per_block: int, rounds: int = 9
) -> dict[str, StepTime]:
    """Time blocks of steps in turn, for some rounds; the first name is the reference.

    Args:
        blocks: What to time. Each call runs some steps and waits until they are done.
        calls_per_block: How many steps a call runs.
        rounds: How often each block runs after a warm-up call, in an order that rotates.

    Returns:
        The time of one step of each block, and its ratio to the reference's.
    """
    names = list(blocks)
    for run in blocks.values():
        run()
    seconds = {name: np.zeros(rounds) for name in names}
    for index in range(rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.perf_counter()
            blocks[name]()
            seconds[name][index] = time.perf_counter() - began
    reference = seconds[names[0]]
    return {
        name: StepTime(
            float(np.median(taken)) / calls_per_block * 1e3, float(np.median(taken / reference))
        )
        for name, taken in seconds.items()
    }
