"""Time every implementation of a product on this machine, and keep the fastest that is right.

A product is measured on random weights and rows. Each implementation is compiled into a program
that computes the product several times, one after the other, with as many different weights as a
cache does not hold: products of few rows are bound by reading weights from memory, and a weight
that stays in the cache would hide that. The same program is held to sums in float32.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxprune.kernels import _trials as trials
from jaxprune.kernels import dispatch, tuning
from jaxprune.kernels._plan import Outcome, Plan, said
from jaxprune.kernels._stopwatch import Effort as Effort
from jaxprune.kernels._stopwatch import compile_all

Direction = Literal["forward", "input_gradient", "weight_gradient"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A product to measure.

    Attributes:
      product: which product.
      direction: ``"forward"``, or for blocks one of the two gradients.
    """

    product: tuning.Product
    direction: Direction = "forward"


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one implementation came to.

    Attributes:
      implementation: ``"dense"``, ``"xla"``, or a kernel.
      config: fields of the kernel's settings; None for its default.
      seconds: median time; None if there is none.
      error: relative, in the norm, to sums in float32.
      failure: why it does not count; None if it does.
    """

    implementation: str
    config: Mapping[str, Any] | None = None
    seconds: float | None = None
    error: float | None = None
    failure: str | None = None


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a product came to.

    Attributes:
      case: which product.
      dense: the product with an ordinary dense weight.
      timings: of the implementations for compressed weights; ``"dense"`` among them makes the
        weight dense first.
      bytes: read and written at least, with the compressed weight.
      flops: operations on stored weights.
      calls: products that a timed program computed, one after the other.
      copies: weights that these went round.
    """

    case: Case
    dense: Timing
    timings: tuple[Timing, ...]
    bytes: int
    flops: float
    calls: int
    copies: int

    @property
    def best(self) -> Timing | None:
        """The fastest implementation that is right; None if there is none."""
        right = [t for t in self.timings if t.failure is None and t.seconds is not None]
        return min(right, key=lambda t: t.seconds or 0.0, default=None)

    @property
    def speedup(self) -> float | None:
        """Dense time over that of the best."""
        if self.best is None or self.best.seconds is None or self.dense.seconds is None:
            return None
        return self.dense.seconds / self.best.seconds

    def entry(self) -> tuning.Entry | None:
        """Return the line for a table of timings; None for gradients, and where all failed."""
        if self.case.direction != "forward" or self.best is None or self.speedup is None:
            return None
        best = self.best
        return tuning.Entry(
            self.case.product, best.implementation, round(self.speedup, 3), best.config
        )


def case(
    format: str,
    rows: int,
    k: int,
    n_out: int,
    *,
    density: float | None = None,
    dtype: Any = jnp.bfloat16,
    direction: Direction = "forward",
) -> Case:
    """Describe a product on this machine.

    Args:
      format: ``"2:4"``, ``"128x128"`` or ``"bitmap"``.
      rows: rows of the dense operand.
      k: length of the contracted axis.
      n_out: columns of the result.
      density: stored share of the weight; n:m has its own.
      dtype: of both operands.
      direction: the product itself, or for blocks one of the two gradients.

    Returns:
      The case, with the density that whole blocks allow.

    Raises:
      ValueError: the format is unknown, the sizes do not fit it, or its density is missing.

    Example:
      >>> from jaxprune.kernels import autotune
      >>> one = autotune.case("2:4", 1, 4096, 4096)
      >>> one.product.dtype, one.product.density, one.direction
      ('bfloat16', 0.5, 'forward')
    """
    kind, (a, b) = trials.pattern_of(format)
    if kind == "nm":
        density = a / b
    if density is None or not 0.0 < density <= 1.0:
        raise ValueError(f"density of {format!r} must be above 0 and at most 1, got {density}.")
    height, width = (b, 1) if kind == "nm" else (a, b)
    if min(rows, k, n_out) < 1 or k % height or n_out % width:
        raise ValueError(
            f"{rows} rows and a weight of {k} × {n_out} do not fit {format!r}: rows must be 1 or "
            f"more, k a multiple of {height}, n_out one of {width}."
        )
    if kind != "block" and direction != "forward":
        raise ValueError(f"gradients are measured for blocks, not for {format!r}.")
    name = np.dtype(dtype).name
    if name not in trials.TOLERANCE:
        raise ValueError(f"dtype must be one of {', '.join(trials.TOLERANCE)}, got {name}.")
    product = tuning.Product(dispatch.device_kind(), format, name, rows, k, n_out, density)
    if kind == "block":
        whole = (k // a) * (n_out // b)
        product = dataclasses.replace(product, density=trials.slots_of(product) / whole)
    return Case(product, direction)


def measure(
    cases: Sequence[Case],
    *,
    effort: Effort | None = None,
    configs: int | None = None,
    only: Sequence[str] | None = None,
    together: int = 8,
    seed: int = 0,
) -> Iterator[Measured]:
    """Time products, one after the other.

    Args:
      cases: which products. Neighbours with the same weight share it.
      effort: how long is measured; a second a product by default.
      configs: settings that are tried of each kernel, the default first; None for all.
      only: names of the implementations that are measured; None for all.
      together: products that are compiled at a time, before they are measured.
      seed: of the random operands.

    Returns:
      What each product came to, one after the other. An implementation that does not compile, does
      not run, or is wrong has the reason in ``failure``.

    Example:
      >>> from jaxprune.kernels import autotune
      >>> one = autotune.case("64x64", 4, 128, 128, density=0.5, dtype="float32")
      >>> quick = autotune.Effort(sample=1e-4, seconds=0.0, rounds=(1, 1))
      >>> measured = next(autotune.measure([one], effort=quick))
      >>> sorted(t.implementation for t in measured.timings), measured.best.failure
      (['dense', 'xla'], None)
    """
    compiled: dict[Any, Any] = {}
    for start in range(0, len(cases), together):
        some = cases[start : start + together]
        plans = [Plan(one.product, one.direction, configs, only) for one in some]
        programs = {key: make for plan in plans for key, make in plan.programs().items()}
        missing = {key: make for key, make in programs.items() if key not in compiled}
        compiled.update(zip(missing, compile_all(list(missing.values())), strict=True))
        for one, plan in zip(some, plans, strict=True):
            dense, *timings = map(_timing, _outcomes(plan, compiled, effort or Effort(), seed))
            yield Measured(
                one, dense, tuple(timings), plan.bytes, plan.flops, plan.calls, plan.copies
            )


def _outcomes(plan: Plan, compiled: Mapping[Any, Any], effort: Effort, seed: int) -> list[Outcome]:
    try:
        return plan.run(compiled, effort, seed)
    except Exception as error:  # such as too little memory: other products can be measured
        return [Outcome(way, None, None, said(error)) for way in plan.ways]


def _timing(outcome: Outcome) -> Timing:
    config: Any = outcome.way.config
    if config is not None:
        config = config._asdict() if hasattr(config, "_asdict") else dataclasses.asdict(config)
    return Timing(outcome.way.name, config, outcome.seconds, outcome.error, outcome.failure)
