"""Every public member of each kind, once. The common laws and the docs' choice tables read it.

What a member cannot do by nature stands in its row as a need; no test asks for a name.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from jaxprune import allocation, patterns, schedules, scores
from jaxprune.masks import Patterns


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
      pattern: which the masks obey.
      settles: the first call after which they do.
      dense: ``(inner, params) -> transform`` of the same kind at a sparsity of 0, for leaves of any
        shape: it must train as ``inner`` alone.
      akin_to: a row that shares much of its code. Where a check has to compile, what is akin to
        another is a slow test.
    """

    sparsities: tuple[float, ...]
    changes: tuple[int, ...] | None
    dense: Callable[[Any, Any], Any]
    pattern: Patterns = dataclasses.field(default=patterns.Unstructured(), hash=False)
    settles: int = 0
    akin_to: str | None = None


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


def _product(params: Any, x: jax.Array) -> jax.Array:
    for weight in jax.tree.leaves(params):
        x = jax.nn.relu(x.astype(weight.dtype) @ weight)
    return x


def _loss(params: Any, x: jax.Array, temperature: float = 1.0) -> jax.Array:
    return ((_product(params, x) / temperature) ** 2).mean()


def _batches(params: Any) -> list[jax.Array]:
    rows = jax.tree.leaves(params)[0].shape[0]
    drawn = np.random.default_rng(0).normal(size=(2, 5, rows)).astype(np.float32)
    return [jnp.asarray(batch) for batch in drawn]


def _snip(params: Any, masks: Any = None) -> Any:
    return scores.snip(_loss, params, _batches(params), masks=masks, where=".*")


def _grasp(params: Any, masks: Any = None) -> Any:
    return scores.grasp(_loss, params, _batches(params), masks=masks, where=".*", temperature=2.0)


def _synflow(params: Any, masks: Any = None) -> Any:
    example = _batches(params)[0]
    return scores.synflow(_product, params, example, masks=masks, where=".*")


# make() -> what `initial.iterate` calls, `(params, masks) -> scores`, for matrices that multiply in
# turn. Needs: "a loss" or "a function"; "signed" (a negative score says something).
DATA_SCORES = (
    row("snip", lambda: _snip, "a loss", paper="arXiv:1810.02340"),
    row("grasp", lambda: _grasp, "a loss", "signed", paper="arXiv:2002.07376"),
    row("synflow", lambda: _synflow, "a function", paper="arXiv:2006.05467"),
)

# make() -> pattern that fits shapes whose last two axes are multiples of 8.
# Needs: "sums" (its scores are summed over devices).
PATTERNS = (
    row("Unstructured", patterns.Unstructured),
    row("NM", lambda: patterns.NM(2, 4), paper="arXiv:2102.04010"),
    row("Block", lambda: patterns.Block((4, 2))),
    row("Channel", lambda: patterns.Channel(-1), "sums", paper="arXiv:1608.08710"),
)

_READ = {  # of the shapes of the laws, 1 of 1000 weights or one at least
    "stem/kernel": (3, 3, 3, 16),
    "body/kernel": (64, 128),
    "twin/kernel": (64, 128),
    "wide/kernel": (3, 3, 64, 256),
    "head/kernel": (128, 10),
}


def _sparse_masks() -> dict[str, np.ndarray]:
    sizes = {path: math.prod(shape) for path, shape in _READ.items()}
    return {
        path: (np.arange(size) < max(1, size // 1100)).reshape(_READ[path])
        for path, size in sizes.items()
    }


# make() -> allocation. Needs: "scores" (has no densities without them); "names" (of layers);
# "dense layers" (some keep a density of their own, so that not every sparsity can be reached).
ALLOCATIONS = (
    row("uniform", lambda: allocation.uniform),
    row("erdos_renyi", lambda: allocation.erdos_renyi, paper="arXiv:1707.04780"),
    row("erdos_renyi_kernel", lambda: allocation.erdos_renyi_kernel, paper="arXiv:1911.11134"),
    row("per_layer", lambda: allocation.per_layer({"kernel": 0.5}), "names"),
    row("global_", lambda: allocation.global_(min_kept=1), "scores", paper="arXiv:2209.14624"),
    row(
        "uniform_plus",
        lambda: allocation.uniform_plus(first="stem", last="head"),
        "dense layers",
        paper="arXiv:2202.02643",
    ),
    row(
        "erk_plus",
        lambda: allocation.erk_plus(last="head"),
        "dense layers",
        paper="arXiv:2202.02643",
    ),
    row("precrop", allocation.precrop, paper="arXiv:2203.02549"),
    row(
        "from_masks",
        lambda: allocation.from_masks(_sparse_masks()),
        "names",
        paper="arXiv:2202.02643",
    ),
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
# for leaves whose last two axes are multiples of 8; settings: packed. What it multiplies by is a
# power of two, so that compilers cannot round it in two ways.
# Needs: "dense" (stores dense weights: only `final_params` are sparse); "regrows" (pruned weights
# come back); "masked gradients" (the inner optimizer sees zeros for pruned weights); "own
# gradients" (it sees what the method makes of them); "moves moments" (where masks change); "moves
# counts" (between layers, and the total by a few); "rests" (some weights do not move at all);
# "heavy updates" (where masks change it takes more memory than a byte a weight); "values" (of the
# weights, for the first masks: shapes alone do not do).
_CROSSWISE = {"hidden": patterns.NM(1, 2, axis=1), ".*": patterns.NM(1, 2, axis=0)}
_REGROWS = frozenset({"regrows", "masked gradients", "moves moments"})
_KEEPS_ALL = patterns.NM(1, 1, axis=0, pad=True)


def _all_kept(params: Any) -> Any:
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)


TRANSFORMS = (
    TransformRow(
        "gradual",
        lambda inner, params, **settings: jaxprune.gradual(
            inner, schedules.cubic(0.0, 0.5, begin=2, end=8), every=4, **settings
        ),
        sparsities=(0.0,) * 6 + (schedules.cubic(0.0, 0.5, begin=2, end=8).at(6),) * 2 + (0.5,) * 4,
        changes=(2, 6, 8),
        dense=lambda inner, params: jaxprune.gradual(
            inner, schedules.cubic(0.0, 0.0, begin=2, end=8), every=4, where=".*"
        ),
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
        dense=lambda inner, params: jaxprune.static(inner, _all_kept(params)),
    ),
    TransformRow(
        "dynamic",
        lambda inner, params, **settings: jaxprune.dynamic(
            inner,
            0.5,
            every=3,
            end=9,
            drop=0.5,
            growth=jaxprune.growth.momentum(),
            pattern=patterns.NM(2, 4),
            **settings,
        ),
        _REGROWS,
        sparsities=(0.5,) * CALLS,
        changes=(3, 6),
        dense=lambda inner, params: jaxprune.dynamic(
            inner,
            0.0,
            every=3,
            end=9,
            drop=0.5,
            growth=jaxprune.growth.momentum(),
            allocation=allocation.uniform,
            where=".*",
        ),
        pattern=patterns.NM(2, 4),
        paper="arXiv:1911.11134",
    ),
    TransformRow(
        "rigl",
        lambda inner, params, **settings: jaxprune.rigl(
            inner, 0.5, every=3, end=9, drop=0.5, allocation=allocation.uniform, **settings
        ),
        _REGROWS,
        sparsities=(0.5,) * CALLS,
        changes=(3, 6),
        dense=lambda inner, params: jaxprune.rigl(
            inner, 0.0, every=3, end=9, allocation=allocation.uniform, where=".*"
        ),
        akin_to="dynamic",
        paper="arXiv:1911.11134",
    ),
    TransformRow(
        "set_training",
        lambda inner, params, **settings: jaxprune.set_training(
            inner, 0.5, every=3, end=9, allocation=allocation.uniform, **settings
        ),
        _REGROWS | {"heavy updates"},
        sparsities=(0.5,) * CALLS,
        changes=(3, 6),
        dense=lambda inner, params: jaxprune.set_training(
            inner, 0.0, every=3, end=9, allocation=allocation.uniform, where=".*"
        ),
        akin_to="dynamic",
        paper="arXiv:1707.04780",
    ),
    TransformRow(
        "itop",
        lambda inner, params, **settings: jaxprune.itop(
            inner, 0.5, every=4, end=12, allocation=allocation.uniform, **settings
        ),
        _REGROWS | {"heavy updates"},
        sparsities=(0.5,) * CALLS,
        changes=(4, 8),
        dense=lambda inner, params: jaxprune.itop(
            inner, 0.0, every=4, end=12, allocation=allocation.uniform, where=".*"
        ),
        akin_to="dynamic",
        paper="arXiv:2102.02887",
    ),
    TransformRow(
        "granet",
        lambda inner, params, **settings: jaxprune.granet(
            inner,
            schedules.cubic(0.25, 0.5, begin=2, end=8),
            every=3,
            end=10,
            allocation=allocation.uniform,
            start=allocation.uniform,
            **settings,
        ),
        _REGROWS,
        sparsities=(0.25,) * 5
        + (schedules.cubic(0.25, 0.5, begin=2, end=8).at(5),) * 3
        + (0.5,) * 4,
        changes=(2, 3, 5, 6, 8, 9),
        dense=lambda inner, params: jaxprune.granet(inner, 0.0, every=3, end=10, where=".*"),
        akin_to="dynamic",
        paper="arXiv:2106.10404",
    ),
    TransformRow(
        "snfs",
        lambda inner, params, **settings: jaxprune.snfs(inner, 0.5, every=3, end=9, **settings),
        frozenset({"regrows", "moves counts"}),
        sparsities=(0.5,) * CALLS,
        changes=(3, 6),
        dense=lambda inner, params: jaxprune.snfs(inner, 0.0, every=3, end=9, drop=0.0, where=".*"),
        akin_to="dynamic",
        paper="arXiv:1907.04840",
    ),
    TransformRow(
        "top_kast",
        lambda inner, params, **settings: jaxprune.top_kast(
            inner, 0.5, backward_sparsity=0.25, decay=2.0**-10, **settings
        ),
        frozenset({"dense", "regrows", "own gradients", "rests", "values"}),
        sparsities=(0.5,) * CALLS,
        changes=None,
        dense=lambda inner, params: jaxprune.top_kast(
            inner, 0.0, backward_sparsity=0.0, where=".*"
        ),
        akin_to="ste",
        paper="arXiv:2106.03517",
    ),
    TransformRow(
        "acdc",
        lambda inner, params, **settings: jaxprune.acdc(
            inner, 0.5, begin=2, every=2, end=8, allocation=allocation.uniform, **settings
        ),
        _REGROWS,
        sparsities=(0.0,) * 2 + (0.5,) * 2 + (0.0,) * 4 + (0.5,) * 4,
        changes=(2, 4, 8),
        dense=lambda inner, params: jaxprune.acdc(inner, 0.0, begin=2, every=2, end=8, where=".*"),
        akin_to="gradual",
        paper="arXiv:2106.12379",
    ),
    TransformRow(
        "ste",
        lambda inner, params, **settings: jaxprune.ste(inner, patterns.NM(2, 4), **settings),
        frozenset({"dense", "regrows", "values"}),
        sparsities=(0.5,) * CALLS,
        changes=None,
        dense=lambda inner, params: jaxprune.ste(inner, _KEEPS_ALL, where=".*"),
        pattern=patterns.NM(2, 4),
        paper="arXiv:2102.04010",
    ),
    TransformRow(
        "sr_ste",
        lambda inner, params, **settings: jaxprune.sr_ste(
            inner, patterns.NM(2, 4), decay=2.0**-10, **settings
        ),
        frozenset({"dense", "regrows", "own gradients", "values"}),
        sparsities=(0.5,) * CALLS,
        changes=None,
        dense=lambda inner, params: jaxprune.sr_ste(inner, _KEEPS_ALL, where=".*"),
        pattern=patterns.NM(2, 4),
        paper="arXiv:2102.04010",
    ),
    TransformRow(
        "mdgf_linear",
        lambda inner, params, **settings: jaxprune.mdgf_linear(
            inner, patterns.NM(2, 4), begin=2, end=8, **settings
        ),
        frozenset({"dense", "regrows", "values"}),
        sparsities=(0.5,) * CALLS,
        changes=None,
        dense=lambda inner, params: jaxprune.mdgf_linear(
            inner, _KEEPS_ALL, begin=2, end=8, where=".*"
        ),
        pattern=patterns.NM(2, 4),
        akin_to="ste",
        paper="arXiv:2402.04744",
    ),
    TransformRow(
        "mdgf_exponential",
        lambda inner, params, **settings: jaxprune.mdgf_exponential(
            inner, patterns.NM(2, 4), begin=2, end=8, decay=0.5, **settings
        ),
        frozenset({"dense", "regrows", "values"}),
        sparsities=(0.5,) * CALLS,
        changes=None,
        dense=lambda inner, params: jaxprune.mdgf_exponential(
            inner, _KEEPS_ALL, begin=2, end=8, decay=0.5, where=".*"
        ),
        pattern=patterns.NM(2, 4),
        akin_to="ste",
        paper="arXiv:2402.04744",
    ),
    TransformRow(
        "sdgf_stepwise",
        lambda inner, params, **settings: jaxprune.sdgf_stepwise(
            inner, patterns.NM(2, 4), begin=2, end=8, **settings
        ),
        frozenset({"dense", "regrows", "values"}),
        sparsities=(0.0,) * 2 + (0.25,) * 3 + (0.5,) * 7,
        changes=None,
        dense=lambda inner, params: jaxprune.sdgf_stepwise(
            inner, _KEEPS_ALL, begin=2, end=8, where=".*"
        ),
        pattern=patterns.NM(2, 4),
        settles=5,
        akin_to="ste",
        paper="arXiv:2402.04744",
    ),
    TransformRow(
        "sdgf_geometric",
        lambda inner, params, **settings: jaxprune.sdgf_geometric(
            inner,
            _CROSSWISE,
            begin=0,
            end=8,
            **settings,
        ),
        frozenset({"dense", "regrows", "values"}),
        sparsities=(0.5,) * CALLS,
        changes=None,
        dense=lambda inner, params: jaxprune.sdgf_geometric(
            inner, _KEEPS_ALL, begin=0, end=8, where=".*"
        ),
        pattern=_CROSSWISE,
        settles=6,
        paper="arXiv:2402.04744",
    ),
)
