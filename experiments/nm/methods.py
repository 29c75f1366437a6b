"""The ways to train N:M, with the proportions that all cells share."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import optax

import jaxprune
from experiments.nm.models import BLOCKS
from jaxprune import NM

DENSE_UNTIL = 0.05  # share of training before progressive gradient flow begins
SPARSE_FROM = 0.8  # share after which it trains plain N:M
FADED = 10.0  # MdGf-Exponential leaves exp(-10) of a pruned weight when plain N:M begins


class Phases(NamedTuple):
    """The steps between which a pattern takes hold."""

    begin: int
    end: int


def phases(steps: int) -> Phases:
    """Return the phases of a training of so many steps."""
    return Phases(round(DENSE_UNTIL * steps), round(SPARSE_FROM * steps))


Inner = optax.GradientTransformation
Make = Callable[[Inner, NM, Phases], optax.GradientTransformation]


def ste(inner: Inner, pattern: NM, phases: Phases) -> optax.GradientTransformation:
    """N:M from the first step."""
    del phases
    return jaxprune.ste(inner, pattern, where=BLOCKS)


def sr_ste(inner: Inner, pattern: NM, phases: Phases) -> optax.GradientTransformation:
    """N:M from the first step, with pruned weights pulled to zero."""
    del phases
    return jaxprune.sr_ste(inner, pattern, where=BLOCKS)


def mdgf_linear(inner: Inner, pattern: NM, phases: Phases) -> optax.GradientTransformation:
    """Pruned weights fade linearly, to zero at the end."""
    return jaxprune.mdgf_linear(inner, pattern, **phases._asdict(), where=BLOCKS)


def mdgf_exponential(inner: Inner, pattern: NM, phases: Phases) -> optax.GradientTransformation:
    """Pruned weights fade exponentially."""
    rate = FADED / (phases.end - phases.begin)
    return jaxprune.mdgf_exponential(inner, pattern, **phases._asdict(), decay=rate, where=BLOCKS)


def sdgf_stepwise(inner: Inner, pattern: NM, phases: Phases) -> optax.GradientTransformation:
    """Sparser and sparser patterns."""
    return jaxprune.sdgf_stepwise(inner, pattern, **phases._asdict(), where=BLOCKS)


def sdgf_geometric(inner: Inner, pattern: NM, phases: Phases) -> optax.GradientTransformation:
    """The final sparsity in finer and finer groups."""
    return jaxprune.sdgf_geometric(inner, pattern, **phases._asdict(), where=BLOCKS)


METHODS: Mapping[str, Make] = {
    "ste": ste,
    "sr-ste": sr_ste,
    "mdgf-linear": mdgf_linear,
    "mdgf-exponential": mdgf_exponential,
    "sdgf-stepwise": sdgf_stepwise,
    "sdgf-geometric": sdgf_geometric,
}
