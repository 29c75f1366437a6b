"""How many weights a method keeps over training: known from shapes before the first step."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxprune import allocation as allocations
from jaxprune.masks import MaskRule, describe
from jaxprune.types import Shapes

Counts: TypeAlias = dict[str, np.ndarray]
"""Weights by path, ``(stages,)`` float64."""


class Stages(NamedTuple):
    """Counts of weights over training, in stages of steps that are alike.

    Attributes:
      first: ``(stages,)`` int64, the first step of each, ascending from 0.
      seen: ``{path: (stages,) float64}``, the weights that the loss sees in each step.
      graded: likewise, the weights whose own gradient the method looks at in each step.
      loose: what only the run will tell, as a sentence; empty if the counts are certain. Then the
        counts are certain in total, and divided among the weights by assumption.
    """

    first: np.ndarray
    seen: Counts
    graded: Counts
    loose: str = ""


@dataclasses.dataclass(frozen=True)
class Course:
    """What is known of a method's masks before the run.

    Attributes:
      stages: ``(shapes, steps) -> Stages`` of the prunable weights by path, over some calls of
        update; None for as many as the schedule takes.
      rule: which pattern each weight has, or None where masks are given.
    """

    stages: Callable[[Shapes, int | None], Stages]
    rule: MaskRule | None = None


def steady(seen: Mapping[str, Any], graded: Mapping[str, Any] | None = None) -> Stages:
    """Return the stages of a method whose counts never change."""
    both = [seen, seen if graded is None else graded]
    rows = [{path: np.full(1, count, np.float64) for path, count in x.items()} for x in both]
    return Stages(np.zeros(1, np.int64), rows[0], rows[1])


def merged(parts: Sequence[Stages]) -> Stages:
    """Return the stages of several sets of weights together."""
    first = np.unique(np.concatenate([part.first for part in parts]))
    seen, graded = {}, {}
    for part in parts:
        at = np.searchsorted(part.first, first, side="right") - 1
        seen |= {path: row[at] for path, row in part.seen.items()}
        graded |= {path: row[at] for path, row in part.graded.items()}
    loose = " ".join(dict.fromkeys(part.loose for part in parts if part.loose))
    return Stages(first, seen, graded, loose)


def looking(stages: Stages, shapes: Shapes, steps: Sequence[int]) -> Stages:
    """Return stages in which the method looks at all gradients, in some single steps."""
    ends = [[step, step + 1] for step in steps]
    first = np.unique(np.concatenate([stages.first, np.ravel(ends)])).astype(np.int64)
    at, looks = np.searchsorted(stages.first, first, side="right") - 1, np.isin(first, steps)
    seen = {path: row[at] for path, row in stages.seen.items()}
    graded = {
        path: np.where(looks, float(np.prod(shapes[path], dtype=np.int64)), row[at])
        for path, row in stages.graded.items()
    }
    return Stages(first, seen, graded, stages.loose)


def sizes_of(shapes: Shapes) -> dict[str, float]:
    """Return the number of weights by path."""
    return {path: float(np.prod(shape, dtype=np.int64)) for path, shape in shapes.items()}


def loose_of(rule: MaskRule) -> str:
    """Say what a ranking over the whole model leaves to the scores."""
    if not isinstance(rule.allocation, allocations.Global):
        return ""
    return (
        f"allocation={describe(rule.allocation)} lets the scores divide the budget: only the total "
        "is known, and FLOPs take its density in every weight."
    )
