"""The transforms whose cost is measured: each so that no step changes masks, and so that all do."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

import jaxprune

Transform = optax.GradientTransformationExtraArgs
Wrap = Callable[[optax.GradientTransformation, Any], Transform]
"""``(inner, params) -> transform``."""

END = 20_000  # more steps than are timed
SPARSITY = 0.9
_UNIFORM = jaxprune.allocation.uniform


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """One transform to measure.

    Attributes:
      quiet: wraps an optimizer so that no step changes masks, once training has begun.
      updating: wraps it so that every step does; None if the transform has one kind of step.
      cycle: steps after which an updating one repeats what it does.
      rests: how many steps of such a cycle change no masks after all.
    """

    quiet: Wrap
    updating: Wrap | None = None
    cycle: int = 1
    rests: int = 0


def _gradual(*, packed: bool = False) -> Wrapped:
    ramp = jaxprune.schedules.cubic(0.0, SPARSITY, begin=0, end=END)

    def wrap(every: int) -> Wrap:
        return lambda inner, _: jaxprune.gradual(inner, ramp, every=every, packed=packed)

    return Wrapped(wrap(END), wrap(1))


def _static(*, packed: bool = False) -> Wrapped:
    def wrap(inner: optax.GradientTransformation, params: Any) -> Transform:
        masks = jaxprune.make_masks(jaxprune.scores.magnitude(params), SPARSITY)
        return jaxprune.static(inner, masks, packed=packed)

    return Wrapped(wrap)


def _periodic(make: Callable[..., Transform], **settings: Any) -> Wrapped:
    """A transform that changes masks from step ``begin`` on, every so many steps."""

    def wrap(every: int) -> Wrap:
        return lambda inner, _: make(
            inner, SPARSITY, every=every, end=2 * END, allocation=_UNIFORM, **settings
        )

    return Wrapped(wrap(END), wrap(1))


def _granet() -> Wrapped:
    """Prunes in one step and regenerates in the next, at the earliest in turns."""
    ramp = jaxprune.schedules.cubic(0.5, SPARSITY, begin=0, end=END)

    def wrap(every: int) -> Wrap:
        return lambda inner, _: jaxprune.granet(inner, ramp, every=every, end=2 * END)

    return Wrapped(wrap(END), wrap(2), cycle=2)


def _acdc(*, packed: bool = False) -> Wrapped:
    """Prunes, restores in the next step, and rests for one at the least."""

    def wrap(every: int, decompressed: int) -> Wrap:
        return lambda inner, _: jaxprune.acdc(
            inner,
            SPARSITY,
            begin=0,
            every=every,
            decompressed=decompressed,
            end=2 * END,
            allocation=_UNIFORM,
            packed=packed,
        )

    return Wrapped(wrap(END, END), wrap(1, 2), cycle=3, rests=1)


def _top_kast(every: int) -> Wrap:
    return lambda inner, _: jaxprune.top_kast(inner, SPARSITY, backward_sparsity=0.8, every=every)


def _straight(make: Callable[..., Transform], **settings: Any) -> Wrapped:
    """A transform that takes the N:M mask of the present weights in every step."""
    pattern = {".*/(query|key|value)/kernel": jaxprune.NM(2, 4, axis=0)}
    pattern |= {".*/out/kernel": jaxprune.NM(2, 4, axis=(0, 1)), ".*": jaxprune.NM(2, 4)}
    return Wrapped(lambda inner, _: make(inner, pattern, **settings))


TRANSFORMS: dict[str, Wrapped] = {
    "gradual": _gradual(),
    "gradual, packed": _gradual(packed=True),
    "static": _static(),
    "static, packed": _static(packed=True),
    "acdc": _acdc(),
    "acdc, packed": _acdc(packed=True),
    "dynamic, by momentum": _periodic(jaxprune.dynamic, growth=jaxprune.growth.momentum()),
    "set_training": _periodic(jaxprune.set_training),
    "rigl": _periodic(jaxprune.rigl),
    "rigl, packed": _periodic(jaxprune.rigl, packed=True),
    "itop": _periodic(jaxprune.itop),
    "itop, packed": _periodic(jaxprune.itop, packed=True),
    "snfs": _periodic(jaxprune.snfs),
    "granet": _granet(),
    "top_kast": Wrapped(_top_kast(END), _top_kast(1)),
    "ste": _straight(jaxprune.ste),
    "ste, packed": _straight(jaxprune.ste, packed=True),
    "sr_ste": _straight(jaxprune.sr_ste),
    "mdgf_linear": _straight(jaxprune.mdgf_linear, begin=0, end=END),
    "mdgf_exponential": _straight(jaxprune.mdgf_exponential, begin=0, end=END),
    "sdgf_stepwise": _straight(jaxprune.sdgf_stepwise, begin=0, end=END),
    "sdgf_geometric": _straight(jaxprune.sdgf_geometric, begin=0, end=END),
}
