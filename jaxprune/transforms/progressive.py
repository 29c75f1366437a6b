"""Progressive gradient flow for N:M training, in its four published variants (arXiv:2402.04744)."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jaxprune._core.prunable import Where, default_where
from jaxprune.masks import MaskRule, Patterns
from jaxprune.patterns import NM
from jaxprune.transforms._course import Stages, merged, sizes_of
from jaxprune.transforms._straight import (
    Straight,
    final_mask,
    live_of,
    train_straight_through,
)
from jaxprune.transforms._timetable import as_step
from jaxprune.transforms.recipe import everything
from jaxprune.types import Pattern, Shapes


def mdgf_linear(
    inner: optax.GradientTransformation,
    pattern: Patterns,
    *,
    begin: int,
    end: int,
    decay: float | None = None,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Train N:M sparse weights with a mask that decays linearly (MdGf-Linear).

    The loss sees ``W ⊙ (B + (1 − B) · β)``; ``B`` keeps the n largest ``|W|`` of every group and is
    recomputed in every step, and ``β = max(0, 1 − decay · (step − begin))`` lets pruned weights
    fade: 1 (dense) until ``begin``, 0 (N:M) from ``end`` on. Gradients pass straight through,
    unscaled. Parameters are stored dense, as in `jaxprune.ste`.

    Args:
      inner: the optimizer to wrap.
      pattern: as in `jaxprune.ste`.
      begin: first step of the decay; dense before.
      end: first step of plain N:M training, in which the masked model is fine-tuned.
      decay: share lost per step, above 0. None reaches 0 at ``end``; the paper's 2e-4 takes 5,000
        steps.
      where: as in `jaxprune.make_masks`.
      layers: as in `jaxprune.make_masks`.
      packed: as in `jaxprune.ste`.

    Returns:
      An optax transform.

    Raises:
      ValueError: an end that is not after its begin, or as in `jaxprune.ste`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> params = {"kernel": jnp.array([[4.0], [2.0]])}
      >>> tx = jaxprune.mdgf_linear(optax.sgd(0.0), jaxprune.NM(1, 2), begin=0, end=2)
      >>> opt_state = tx.init(params)
      >>> for _ in range(3):
      ...     print(jaxprune.forward_params(params, opt_state)["kernel"].ravel())
      ...     updates, opt_state = tx.update(params, opt_state, params)
      [4. 2.]
      [4. 1.]
      [4. 0.]

    Reference:
      Bambhaniya et al., Progressive gradient flow for robust N:M sparsity training in
      transformers, arXiv:2402.04744.
    """
    window = _window(begin, end)
    rate = 1.0 / (window.end - window.begin) if decay is None else _rate(decay)

    def share(since: jax.Array) -> jax.Array:
        return jnp.maximum(np.float32(0.0), np.float32(1.0) - np.float32(rate) * since)

    masking = _Masking("mdgf_linear", pattern, where, layers, packed, f"{rate}")
    return _decaying(inner, masking, window, share)


def mdgf_exponential(
    inner: optax.GradientTransformation,
    pattern: Patterns,
    *,
    begin: int,
    end: int,
    decay: float = 2e-4,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Train N:M sparse weights with a mask that decays exponentially (MdGf-Exponential).

    As `jaxprune.mdgf_linear` with ``β = exp(−decay · (step − begin))`` between ``begin`` and
    ``end``, where it drops to 0: the exponential alone never gets there.

    Args:
      inner: the optimizer to wrap.
      pattern: as in `jaxprune.ste`.
      begin: first step of the decay; dense before.
      end: first step of plain N:M training.
      decay: rate per step, above 0.
      where: as in `jaxprune.make_masks`.
      layers: as in `jaxprune.make_masks`.
      packed: as in `jaxprune.ste`.

    Returns:
      An optax transform.

    Raises:
      ValueError: an end that is not after its begin, or as in `jaxprune.ste`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> params = {"kernel": jnp.array([[4.0], [2.0]])}
      >>> tx = jaxprune.mdgf_exponential(
      ...     optax.sgd(0.0), jaxprune.NM(1, 2), begin=0, end=2, decay=0.6931472
      ... )
      >>> opt_state = tx.init(params)
      >>> for _ in range(3):
      ...     print(jaxprune.forward_params(params, opt_state)["kernel"].ravel().round(3))
      ...     updates, opt_state = tx.update(params, opt_state, params)
      [4. 2.]
      [4. 1.]
      [4. 0.]

    Reference:
      Bambhaniya et al., Progressive gradient flow for robust N:M sparsity training in
      transformers, arXiv:2402.04744.
    """
    rate = _rate(decay)

    def share(since: jax.Array) -> jax.Array:
        return jnp.exp(np.float32(-rate) * since)

    masking = _Masking("mdgf_exponential", pattern, where, layers, packed, f"{rate}")
    return _decaying(inner, masking, _window(begin, end), share)


def sdgf_stepwise(
    inner: optax.GradientTransformation,
    pattern: Patterns,
    *,
    begin: int,
    end: int,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Train N:M sparse weights through sparser and sparser patterns (SdGf-Stepwise).

    ``F = ⌊log₂(m / n)⌋ + 1`` frames of equal length between ``begin`` and ``end``; the first keeps
    m − 1 of m, frame i keeps ``⌊m / 2^i⌋``: 7:8, 4:8, 2:8, 1:8 for 1:8. Dense before ``begin``; n:m
    in the last frame and after. Masks are binary, recomputed in every step; gradients pass
    straight through. Parameters are stored dense, as in `jaxprune.ste`.

    Args:
      inner: the optimizer to wrap.
      pattern: as in `jaxprune.ste`.
      begin: first step of the first frame; dense before.
      end: last step of the frames.
      where: as in `jaxprune.make_masks`.
      layers: as in `jaxprune.make_masks`.
      packed: as in `jaxprune.ste`.

    Returns:
      An optax transform.

    Raises:
      ValueError: an end that is not after its begin, or as in `jaxprune.ste`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> params = {"kernel": jnp.array([[4.0], [3.0], [2.0], [1.0]])}
      >>> tx = jaxprune.sdgf_stepwise(optax.sgd(0.0), jaxprune.NM(1, 4), begin=0, end=3)
      >>> opt_state = tx.init(params)
      >>> for _ in range(3):
      ...     print(jaxprune.forward_params(params, opt_state)["kernel"].ravel())
      ...     updates, opt_state = tx.update(params, opt_state, params)
      [4. 3. 2. 0.]
      [4. 3. 0. 0.]
      [4. 0. 0. 0.]

    Reference:
      Bambhaniya et al., Progressive gradient flow for robust N:M sparsity training in
      transformers, arXiv:2402.04744.
    """
    masking = _Masking("sdgf_stepwise", pattern, where, layers, packed)
    return _framed(inner, masking, _window(begin, end), _stepwise_frames)


def sdgf_geometric(
    inner: optax.GradientTransformation,
    pattern: Patterns,
    *,
    begin: int,
    end: int,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Train N:M sparse weights through finer and finer groups (SdGf-Geometric).

    Four frames of equal length between ``begin`` and ``end``; frame i keeps ``n · 2^(3 − i)`` of
    ``m · 2^(3 − i)``: 8:64, 4:32, 2:16, 1:8 for 1:8. The sparsity is constant, its freedom shrinks.
    Dense before ``begin``; n:m in the last frame and after. Parameters are stored dense, as in
    `jaxprune.ste`.

    Args:
      inner: the optimizer to wrap.
      pattern: as in `jaxprune.ste`; the contracted axis must be a multiple of ``8 · m``.
      begin: first step of the first frame; dense before.
      end: last step of the frames.
      where: as in `jaxprune.make_masks`.
      layers: as in `jaxprune.make_masks`.
      packed: as in `jaxprune.ste`.

    Returns:
      An optax transform.

    Raises:
      ValueError: an end that is not after its begin, or as in `jaxprune.ste`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> params = {"kernel": jnp.arange(16.0).reshape(16, 1)}
      >>> tx = jaxprune.sdgf_geometric(optax.sgd(0.0), jaxprune.NM(1, 2), begin=0, end=4)
      >>> opt_state = tx.init(params)
      >>> jaxprune.forward_params(params, opt_state)["kernel"].ravel()[:8].tolist()
      [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
      >>> for _ in range(4):
      ...     updates, opt_state = tx.update(params, opt_state, params)
      >>> jaxprune.forward_params(params, opt_state)["kernel"].ravel()[:8].tolist()
      [0.0, 1.0, 0.0, 3.0, 0.0, 5.0, 0.0, 7.0]

    Reference:
      Bambhaniya et al., Progressive gradient flow for robust N:M sparsity training in
      transformers, arXiv:2402.04744.
    """
    masking = _Masking("sdgf_geometric", pattern, where, layers, packed)
    return _framed(inner, masking, _window(begin, end), _geometric_frames)


@dataclasses.dataclass(frozen=True)
class _Window:
    begin: int
    end: int


def _window(begin: Any, end: Any) -> _Window:
    begin, end = as_step("begin", begin), as_step("end", end)
    if end <= begin:
        raise ValueError(
            f"end must be after begin, got begin={begin}, end={end}. Between these steps of the "
            "optimizer the pattern takes hold: train longer, or begin earlier."
        )
    return _Window(begin, end)


def _rate(decay: float) -> float:
    if not (math.isfinite(decay) and decay > 0.0):
        raise ValueError(
            f"decay must be a finite number above 0, got {decay}. It is the rate at which pruned "
            "weights fade in a step; the paper uses 2e-4."
        )
    return float(decay)


class _Masking:
    """The arguments that the four variants share."""

    def __init__(
        self,
        name: str,
        pattern: Patterns,
        where: Where,
        layers: Mapping[str, int] | None,
        packed: bool,
        settings: str = "",
    ) -> None:
        self.name, self.where, self.packed = name, where, packed
        self.rule = MaskRule(pattern, layers=dict(layers or {}))
        self.settings = settings

    def method(self, window: _Window, **rest: Any) -> Straight:
        text = f"{self.name}|{self.rule.describe()}|{window}|{self.settings}"
        return Straight(
            name=self.name,
            text=text,
            rule=self.rule,
            where=self.where,
            reached=window.end,
            packed=self.packed,
            **rest,
        )


def _decaying(
    inner: optax.GradientTransformation,
    masking: _Masking,
    window: _Window,
    share: Callable[[jax.Array], jax.Array],
) -> optax.GradientTransformationExtraArgs:
    """Train with pruned weights that fade: ``share`` of the steps since the window's begin."""

    def present(path: str, weight: jax.Array, step: jax.Array) -> jax.Array:
        del step
        return final_mask(masking.rule, path, weight)

    def pruned_share(step: jax.Array) -> jax.Array:
        since = jnp.maximum(step - np.int32(window.begin), 0).astype(jnp.float32)
        return jnp.where(step < np.int32(window.end), share(since), np.float32(0.0))

    return train_straight_through(
        inner, masking.method(window, present=present, pruned_share=pruned_share)
    )


def _framed(
    inner: optax.GradientTransformation,
    masking: _Masking,
    window: _Window,
    frames_of: Callable[[NM], list[NM]],
) -> optax.GradientTransformationExtraArgs:
    """Train through patterns that follow each other in frames of equal length."""
    rule = masking.rule

    def present(path: str, weight: jax.Array, step: jax.Array) -> jax.Array:
        pattern = rule.pattern_of(path)
        assert isinstance(pattern, NM)
        frames = frames_of(pattern)
        starts = _starts(window, frames)
        frame = jnp.sum(step >= np.asarray(starts, np.int32), dtype=jnp.int32)
        return _in_frame(rule, frames, frame, path, weight)

    check = functools.partial(_check_first_frame, masking, frames_of)
    stages = functools.partial(_stages, rule, window, frames_of)
    method = masking.method(window, present=present, check=check, stages=stages)
    return train_straight_through(inner, method)


def _starts(window: _Window, frames: list[NM]) -> list[int]:
    """Return the first step of each frame."""
    length = (window.end - window.begin) / len(frames)
    return [window.begin + int(i * length) for i in range(len(frames))]


def _stages(
    rule: MaskRule, window: _Window, frames_of: Callable[[NM], list[NM]], shapes: Shapes
) -> Stages:
    """Return the counts of weights: dense until the first frame, then those of each frame."""
    parts = []
    for path, size in sizes_of(shapes).items():
        one, pattern = {path: shapes[path]}, rule.pattern_of(path)
        assert isinstance(pattern, NM)
        frames = frames_of(pattern)
        live = [live_of(dataclasses.replace(rule, pattern=frame), one)[path] for frame in frames]
        first = np.asarray([0, *_starts(window, frames)], np.int64)
        graded = np.full(len(first), size)
        parts.append(Stages(first, {path: np.asarray([size, *live])}, {path: graded}))
    return merged(parts)


def _check_first_frame(
    masking: _Masking, frames_of: Callable[[NM], list[NM]], shapes: dict[str, tuple[int, ...]]
) -> None:
    """Raise if a weight has no frames, or does not fit those with the longest groups."""
    first: dict[str, Pattern] = {}
    for path in shapes:
        pattern = masking.rule.pattern_of(path)
        if not isinstance(pattern, NM):
            raise ValueError(
                f"{masking.name} needs NM(n, m) for {path!r}, got {pattern!r}. Pass one, or "
                "exclude this parameter with where=."
            )
        first[f"^{re.escape(path)}$"] = frames_of(pattern)[0]
    try:
        dataclasses.replace(masking.rule, pattern=first).check(shapes)
    except ValueError as error:
        raise ValueError(f"the first frame of {masking.name}: {error}") from None


def _in_frame(
    rule: MaskRule, frames: list[NM], frame: jax.Array, path: str, weight: jax.Array
) -> jax.Array:
    """Return the mask of a weight in a frame, counted from 1; in 0 it is dense."""
    final = frames[-1]
    if all(each.m == final.m for each in frames):  # other counts in the same groups
        kept = jnp.asarray([final.m, *(each.n for each in frames)], jnp.int32)[frame]
        per_layer = np.shape(rule.counts({path: weight.shape}, final.final_sparsity)[path])
        return rule.masks({path: jnp.abs(weight)}, {path: jnp.full(per_layer, kept)})[path]
    rules = [dataclasses.replace(rule, pattern=each) for each in frames]
    choices = [everything, *(functools.partial(final_mask, each, path) for each in rules)]
    if not isinstance(frame, Tracer):  # outside jit a switch would compile anew in every call
        return choices[int(frame)](weight)
    return jax.lax.switch(frame, choices, weight)


def _stepwise_frames(final: NM) -> list[NM]:
    count = int(math.log2(final.m / final.n)) + 1
    kept = [max(final.m - 1, final.n), *(final.m >> i for i in range(1, count))]
    return [dataclasses.replace(final, n=max(n, final.n)) for n in kept[:-1]] + [final]


def _geometric_frames(final: NM) -> list[NM]:
    scales = [8, 4, 2, 1]
    return [dataclasses.replace(final, n=final.n * s, m=final.m * s) for s in scales]
