"""Every public member of each kind, once. The common laws and the docs' choice tables read it.

What a member cannot do by nature stands in its row as a need; no test asks for a name.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

import jaxprune
from jaxprune import allocation, patterns, schedules, scores
from jaxprune.types import Pattern


@dataclasses.dataclass(frozen=True)
class Row:
    """One member.

    Attributes:
      name: its public name in its room.
      make: builds one, with arguments that fit the fixtures of the laws.
      needs: what it must be given beyond the common arguments, or what it promises not to keep.
      paper: where it was published.
    """

    name: str
    make: Callable[..., Any]
    needs: frozenset[str] = frozenset()
    paper: str | None = None

    def __repr__(self) -> str:
        return self.name


CALLS = 12


@dataclasses.dataclass(frozen=True, repr=False, kw_only=True)
class TransformRow(Row):
    """A transform, with what it promises of its masks.

    Attributes:
      sparsities: of the masks after each of `CALLS` calls of update.
      changes: the calls that may change masks; None for all.
      pattern: which the masks obey from the last of them on.
    """

    sparsities: tuple[float, ...]
    changes: tuple[int, ...] | None
    pattern: Pattern = patterns.Unstructured()


def row(name: str, make: Callable[..., Any], *needs: str, paper: str | None = None) -> Row:
    """Build a row."""
    return Row(name, make, frozenset(needs), paper)


def _random(params: Any, grads: Any) -> Any:
    del grads
    return scores.random(params, jax.random.key(0))


# make() -> score, a function of (params, grads). Needs: "grads"; "key" (does not read weights).
SCORES = (
    row("magnitude", lambda: scores.magnitude, paper="arXiv:1506.02626"),
    row("random", lambda: _random, "key", paper="arXiv:2202.02643"),
    row("taylor", lambda: scores.taylor, "grads", paper="arXiv:1611.06440"),
)

# make() -> pattern that fits shapes whose last two axes are multiples of 8.
# Needs: "sums" (its scores are summed over devices).
PATTERNS = (
    row("Unstructured", patterns.Unstructured),
    row("NM", lambda: patterns.NM(2, 4), paper="arXiv:2102.04010"),
    row("Block", lambda: patterns.Block((4, 2))),
    row("Channel", lambda: patterns.Channel(-1), "sums", paper="arXiv:1608.08710"),
)

# make() -> allocation. Needs: "scores" (has no densities without them); "names" (of layers).
ALLOCATIONS = (
    row("uniform", lambda: allocation.uniform),
    row("erdos_renyi", lambda: allocation.erdos_renyi, paper="arXiv:1707.04780"),
    row("erdos_renyi_kernel", lambda: allocation.erdos_renyi_kernel, paper="arXiv:1911.11134"),
    row("per_layer", lambda: allocation.per_layer({"kernel": 0.5}), "names"),
    row("global_", lambda: allocation.global_(min_kept=1), "scores", paper="arXiv:2209.14624"),
)

# make() -> schedule that ends at sparsity 0.9, by step 20 at the latest.
# Needs: "window" (two different steps bound it).
SCHEDULES = (
    row(
        "cubic",
        lambda: schedules.cubic(0.1, 0.9, begin=5, end=20),
        "window",
        paper="arXiv:1710.01878",
    ),
    row(
        "polynomial",
        lambda: schedules.polynomial(0.0, 0.9, begin=5, end=20, power=2.5, offset=1),
        "window",
        paper="arXiv:1710.01878",
    ),
    row("linear", lambda: schedules.linear(0.0, 0.9, begin=0, end=20), "window"),
    row("cosine", lambda: schedules.cosine(0.2, 0.9, begin=3, end=20), "window"),
    row("one_shot", lambda: schedules.one_shot(0.9, step=7)),
    row("constant", lambda: schedules.constant(0.9)),
)

# make(inner, params, **settings) -> transform that ends at sparsity 0.5 by call 11, counted from 0,
# for leaves whose last two axes are multiples of 8; settings: packed.
# Needs: "dense" (stores dense weights: only `final_params` are sparse); "regrows" (pruned weights
# come back); "masked gradients" (the inner optimizer sees zeros for pruned weights); "own
# gradients" (it sees what the method makes of them); "moves moments" (where masks change).
TRANSFORMS = (
    TransformRow(
        "gradual",
        lambda inner, params, **settings: jaxprune.gradual(
            inner, schedules.cubic(0.0, 0.5, begin=2, end=8), every=4, **settings
        ),
        sparsities=(0.0,) * 6 + (schedules.cubic(0.0, 0.5, begin=2, end=8).at(6),) * 2 + (0.5,) * 4,
        changes=(2, 6, 8),
        paper="arXiv:1710.01878",
    ),
    TransformRow(
        "static",
        lambda inner, params, **settings: jaxprune.static(
            inner, jaxprune.prune(params, 0.5)[1], **settings
        ),
        frozenset({"masked gradients"}),
        sparsities=(0.5,) * CALLS,
        changes=(),
    ),
)
