"""Sparse fine-tuning: train scattered entries, and move them every few steps (SFT-AG, SFT-MA)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxprune._core import paths
from jaxprune.masks import mask_leaves
from jaxprune.recovery.aged_adam import AgedAdam, AgedMoments, Candidates
from jaxprune.recovery.deltas import SparseDelta
from jaxprune.recovery.rates import Rate
from jaxprune.recovery.sparse_sm3 import SM3Moments, SparseSM3
from jaxprune.types import Tree

LearningRate = float | Callable[[Any], Any]


class SFTAGState(NamedTuple):
    """State of `sft_ag`."""

    step: jax.Array  # int32 (), steps taken
    moments: dict[str, AgedMoments]
    candidates: dict[str, Candidates]


class SFTMAState(NamedTuple):
    """State of `sft_ma`."""

    step: jax.Array  # int32 (), steps taken
    moments: dict[str, SM3Moments]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """When entries move, and how many; computed on the host."""

    steps: int
    rate: Rate
    every: int
    accumulate: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps}. It is all of training.")
        if not 1 <= self.accumulate < self.every:
            raise ValueError(
                f"accumulate must be from 1 to every - 1 = {self.every - 1}, got "
                f"{self.accumulate}. It is the steps that a move looks at."
            )

    def moves(self, step: jax.Array) -> jax.Array:
        """Tell whether entries move after a step, counted from 0."""
        return step % self.every == self.accumulate - 1

    def starts(self, step: jax.Array) -> jax.Array:
        """Tell whether candidates are chosen at a step."""
        return (step == 0) | (step % self.every == self.every - 1)

    def watches(self, step: jax.Array) -> jax.Array:
        """Tell whether gradients of candidates are summed at a step."""
        return self.starts(step) | (step % self.every < self.accumulate)

    def count(self, entries: int, step: jax.Array) -> jax.Array:
        """Return how many of ``entries`` the move at a step takes, int32."""
        at = range(self.accumulate, self.steps + 1, self.every)
        shares = [self.rate(done) if number else 1.0 for number, done in enumerate(at)]
        wrong = [(done, p) for done, p in zip(at, shares, strict=True) if not 0.0 <= p <= 1.0]
        if wrong:
            raise ValueError(
                f"rate gives {wrong[0][1]!r} at step {wrong[0][0]}; it must be a share in [0, 1] "
                "of the entries."
            )
        table = np.asarray([int(entries * share) for share in shares] + [0], np.int32)
        return jnp.asarray(table)[jnp.minimum(step // self.every, len(shares))]


def sft_ag(
    learning_rate: LearningRate,
    *,
    steps: int,
    rate: Rate,
    every: int = 20,
    accumulate: int = 5,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Fine-tune sparse deltas; move entries to where accumulated gradients are largest (SFT-AG).

    Its parameters are the deltas, its gradients those of the loss with regard to
    `effective_params`, in which only weights with a delta are read. Before each move the entries
    of the largest gradients are made candidates, as many as a delta has, and the gradients there
    are summed over ``accumulate`` steps. The move drops the entries of smallest value and grows
    the candidates of largest sum, with Adam's moments from what was seen of them. The first move
    replaces everything that is not chosen again.

    Args:
      learning_rate: a number, or a schedule of the step.
      steps: of training in all; later calls move nothing.
      rate: ``step -> share`` of the entries that a move after the first drops, such as
        `linear_rate`.
      every: steps between moves.
      accumulate: steps over which gradients of candidates are summed; fewer than ``every``. The
        first move comes after as many steps.
      b1: decay of the mean of gradients.
      b2: decay of the mean of squares.
      eps: added to the root of the mean of squares, inside the correction for the age.
      weight_decay: of the values, decoupled.

    Returns:
      An optax transform whose updates of indices are integers, for `optax.apply_updates`. Its
      ``update`` takes ``masks=``, too: entries then grow on kept weights alone.

    Raises:
      ValueError: numbers out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import optax
      >>> from jaxprune import recovery
      >>> params = {"kernel": jnp.zeros((4, 4))}
      >>> tx = recovery.sft_ag(0.1, steps=12, rate=recovery.linear_rate(0.2, 12), every=6)
      >>> deltas = recovery.sparse_deltas(params, 4, key=jax.random.key(0))
      >>> state = tx.init(deltas)
      >>> for _ in range(5):
      ...     grads = {"kernel": -jnp.eye(4)}  # in earnest jax.grad(loss)(effective_params)
      ...     updates, state = tx.update(grads, state, deltas)
      ...     deltas = optax.apply_updates(deltas, updates)
      >>> sorted(deltas["kernel"].indices.tolist())
      [0, 5, 10, 15]

    Reference:
      Ansell et al., Scaling sparse fine-tuning to large language models, arXiv:2401.16405.
    """
    plan, adam = _Plan(steps, rate, every, accumulate), AgedAdam(b1, b2, eps, weight_decay)

    def init(params: Any) -> SFTAGState:
        moments = {path: adam.init(delta) for path, delta in params.items()}
        none = {path: adam.no_candidates(delta) for path, delta in params.items()}
        return SFTAGState(jnp.int32(0), moments, none)

    def update(
        updates: Tree, state: Any, params: Any = None, *, masks: Tree = None, **extra: Any
    ) -> tuple[Any, SFTAGState]:
        del extra
        gradients, kept = _matrices(updates, params), _kept(masks, params)
        step, rate_now = state.step, _at(learning_rate, state.step)
        deltas, moments, candidates = {}, {}, {}
        for path, delta in params.items():
            before = delta, state.moments[path], state.candidates[path]
            deltas[path], moments[path], candidates[path] = _step_ag(
                plan, adam, before, gradients[path], step, rate_now, kept.get(path)
            )
        after = SFTAGState(jnp.asarray(optax.safe_increment(step)), moments, candidates)
        return _difference(deltas, params), after

    return optax.GradientTransformationExtraArgs(init, update)


def sft_ma(
    learning_rate: LearningRate,
    *,
    steps: int,
    rate: Rate,
    every: int = 20,
    accumulate: int = 5,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Fine-tune sparse deltas with SM3; move entries to where its sums are largest (SFT-MA).

    As `sft_ag`, with less memory: instead of two moments for each entry, one number for each row
    and column of a weight bounds the sum of squared gradients. A move grows the entries for which
    the product of the two is largest, among all that are none.

    Args:
      learning_rate: a number, or a schedule of the step.
      steps: as in `sft_ag`.
      rate: as in `sft_ag`.
      every: as in `sft_ag`.
      accumulate: the first move comes after as many steps; fewer than ``every``.
      eps: added to the bound under the root.

    Returns:
      An optax transform, as that of `sft_ag`.

    Raises:
      ValueError: numbers out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import optax
      >>> from jaxprune import recovery
      >>> params = {"kernel": jnp.zeros((4, 4))}
      >>> tx = recovery.sft_ma(0.1, steps=10, rate=recovery.cosine_rate(0.2, 10), every=5,
      ...                      accumulate=1)
      >>> deltas = recovery.sparse_deltas(params, 4, key=jax.random.key(0))
      >>> updates, state = tx.update({"kernel": jnp.ones((4, 4))}, tx.init(deltas), deltas)
      >>> moved = optax.apply_updates(deltas, updates)
      >>> len({*deltas["kernel"].indices.tolist(), *moved["kernel"].indices.tolist()})
      8

    Reference:
      Ansell et al., Scaling sparse fine-tuning to large language models, arXiv:2401.16405.
      Anil et al., Memory-efficient adaptive optimization, arXiv:1901.11150.
    """
    plan, sm3 = _Plan(steps, rate, every, accumulate), SparseSM3(eps)

    def init(params: Any) -> SFTMAState:
        return SFTMAState(jnp.int32(0), {path: sm3.init(delta) for path, delta in params.items()})

    def update(
        updates: Tree, state: Any, params: Any = None, *, masks: Tree = None, **extra: Any
    ) -> tuple[Any, SFTMAState]:
        del extra
        gradients, kept = _matrices(updates, params), _kept(masks, params)
        step, rate_now = state.step, _at(learning_rate, state.step)
        deltas, moments = {}, {}
        for path, delta in params.items():
            before = delta, state.moments[path]
            deltas[path], moments[path] = _step_ma(
                plan, sm3, before, gradients[path], step, rate_now, kept.get(path)
            )
        return _difference(deltas, params), SFTMAState(
            jnp.asarray(optax.safe_increment(step)), moments
        )

    return optax.GradientTransformationExtraArgs(init, update)


_OfAG = tuple[SparseDelta, AgedMoments, Candidates]
_OfMA = tuple[SparseDelta, SM3Moments]


# Weights of one shape share what is traced and compiled.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _step_ag(
    plan: _Plan,
    adam: AgedAdam,
    before: _OfAG,
    gradient: jax.Array,
    step: jax.Array,
    rate: Any,
    allowed: jax.Array | None,
) -> _OfAG:
    delta, moments, seen = before

    def move(delta: SparseDelta, moments: AgedMoments) -> tuple[SparseDelta, AgedMoments]:
        count = plan.count(delta.values.shape[-1], step)
        return adam.move(delta, moments, seen, count, allowed=allowed)

    seen = lax.cond(
        plan.starts(step),
        lambda seen: adam.candidates(delta, gradient, allowed=allowed),
        lambda seen: seen,
        seen,
    )
    seen = lax.cond(
        plan.watches(step),
        lambda seen: adam.observe(delta, seen, gradient),
        lambda seen: seen,
        seen,
    )
    delta, moments = adam.step(delta, moments, gradient, rate)
    delta, moments = lax.cond(plan.moves(step), move, lambda *same: same, delta, moments)
    return delta, moments, seen


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step_ma(
    plan: _Plan,
    sm3: SparseSM3,
    before: _OfMA,
    gradient: jax.Array,
    step: jax.Array,
    rate: Any,
    allowed: jax.Array | None,
) -> _OfMA:
    def move(delta: SparseDelta) -> SparseDelta:
        count = plan.count(delta.values.shape[-1], step)
        return sm3.move(delta, moments, count, allowed=allowed)

    delta, moments = sm3.step(*before, gradient, rate)
    return lax.cond(plan.moves(step), move, lambda same: same, delta), moments


def _at(learning_rate: LearningRate, step: jax.Array) -> Any:
    return learning_rate(step) if callable(learning_rate) else learning_rate


def _matrices(grads: Tree, deltas: Mapping[str, SparseDelta] | None) -> dict[str, jax.Array]:
    """Return the dense gradients of the weights with a delta, ``(*lead, in, out)`` float32."""
    if deltas is None:
        raise ValueError("update needs the deltas: tx.update(grads, state, deltas).")
    leaves = paths.flatten(grads)
    found = {}
    for path, delta in deltas.items():
        shape = getattr(leaves.get(path), "shape", None)
        if shape != delta.shape:
            raise ValueError(
                f"grads has {'nothing' if shape is None else f'shape {shape}'} for {path!r}, whose "
                f"weight has shape {delta.shape}. Differentiate the loss with regard to "
                "recovery.effective_params(params, masks, deltas), not to the deltas."
            )
        found[path] = delta.layout.matrix(leaves[path]).astype(jnp.float32)
    return found


def _kept(masks: Tree, deltas: Mapping[str, SparseDelta]) -> dict[str, jax.Array]:
    """Return the masks of the weights with a delta, bool ``(*lead, in, out)``."""
    kept = mask_leaves(masks)
    return {path: d.layout.matrix(kept[path]) for path, d in deltas.items() if path in kept}


def _difference(new: Mapping[str, SparseDelta], old: Mapping[str, SparseDelta]) -> Any:
    """Return what `optax.apply_updates` adds: exact for indices, and for values that become 0."""
    return {path: jax.tree.map(jnp.subtract, new[path], old[path]) for path in old}
