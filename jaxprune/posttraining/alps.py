"""ALPS: ADMM with a penalty that rises until the mask settles, then conjugate gradients."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.posttraining.gram import checked_gram, checked_number, damped, normalised, product
from jaxprune.posttraining.matrix import Inputs, Pruned, Target
from jaxprune.posttraining.select import Select, chosen, per_matrix
from jaxprune.types import Mask

_PENALTIES = 1e-8, 1e6  # the range of the penalty; below, an input of zeros alone is singular
_LATE = 30  # iterations from which a mask that hardly changes counts as settled


class _Problem(NamedTuple):
    """``min ‖X (B − dense)‖²`` with sparse B, in weights scaled by the norms of their inputs."""

    gram: jax.Array  # (in, in)
    dense: jax.Array  # (in, out)
    pull: jax.Array  # (in, out), gram @ dense


class _State(NamedTuple):
    """Where ADMM stands between two looks at the mask."""

    fitted: jax.Array  # (in, out), minimises error + penalty
    sparse: jax.Array  # (in, out), obeys the pattern
    dual: jax.Array  # (in, out)
    mask: Mask  # (in, out), of `sparse`
    penalty: jax.Array  # ()
    raised: jax.Array  # (), bool: the penalty was raised before
    looks: jax.Array  # (), int32
    stop: jax.Array  # (), bool


@dataclasses.dataclass(frozen=True)
class ALPS:
    """ALPS on one matrix; see :func:`alps`."""

    damping: float = 0.01
    penalty: float = 0.1
    iterations: int = 300
    every: int = 3
    refinements: int = 10
    select: Select = per_matrix

    def __post_init__(self) -> None:
        checked_number("damping", self.damping, 0.0)
        checked_number("penalty", self.penalty, _PENALTIES[0])
        checked_number("iterations", self.iterations, 1, whole=True)
        checked_number("every", self.every, 1, whole=True)
        checked_number("refinements", self.refinements, 0, whole=True)

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of ``Inputs`` that it reads."""
        return ("gram",)

    def __call__(self, weight: jax.Array, inputs: Inputs, target: Target) -> Pruned:
        """Return the pruned weight, in its own dtype, its mask, and the damping used."""
        raw = checked_gram("ALPS", weight, inputs, target)
        gram, norm = normalised(damped(raw, self.damping))
        dense = weight.astype(jnp.float32) * norm[:, None]
        problem = _Problem(gram, dense, product(gram, dense))
        fitted = self._search(problem, target)
        mask = self._mask(fitted, target)
        found = _refined(problem, jnp.where(mask, fitted, 0.0), mask, self.refinements)
        kept = jnp.where(mask, found / norm[:, None], 0.0)
        return Pruned(kept.astype(weight.dtype), mask, jnp.float32(self.damping))

    def _search(self, problem: _Problem, target: Target) -> jax.Array:
        """Return weights close to the pattern: ADMM until the mask stays."""
        first = self._start(problem, target)

        def goes_on(state: _State) -> jax.Array:
            return ~state.stop & (state.looks * self.every < self.iterations)

        def look(state: _State) -> _State:
            before = state.mask
            return self._adjust(self._iterate(problem, state, target), before, first)

        return lax.while_loop(goes_on, look, first).fitted

    def _start(self, problem: _Problem, target: Target) -> _State:
        dense = problem.dense
        mask = self._mask(dense, target)
        return _State(
            fitted=dense,
            sparse=jnp.where(mask, dense, 0.0),
            dual=jnp.zeros_like(dense),
            mask=mask,
            penalty=jnp.float32(self.penalty),
            raised=jnp.bool_(False),
            looks=jnp.int32(0),
            stop=jnp.bool_(False),
        )

    def _iterate(self, problem: _Problem, state: _State, target: Target) -> _State:
        """Make the iterations up to the next look, with one penalty."""
        penalty = state.penalty
        eye = jnp.eye(problem.gram.shape[0], dtype=problem.gram.dtype)
        factor = jax.scipy.linalg.cho_factor(problem.gram + penalty * eye)

        def step(_: jax.Array, state: _State) -> _State:
            wanted = problem.pull - state.dual + penalty * state.sparse
            fitted = jax.scipy.linalg.cho_solve(factor, wanted)
            free = fitted + state.dual / penalty
            mask = self._mask(free, target)
            sparse = jnp.where(mask, free, 0.0)
            dual = state.dual + penalty * (fitted - sparse)
            return state._replace(fitted=fitted, sparse=sparse, dual=dual, mask=mask)

        return lax.fori_loop(0, self.every, step, state)

    def _adjust(self, state: _State, before: Mask, first: _State) -> _State:
        """Set the penalty by how much the mask has changed, and stop if it has settled."""
        flips = jnp.sum(state.mask != before, dtype=jnp.int32)
        kept = jnp.maximum(jnp.sum(state.mask, dtype=jnp.int32), 1)
        share = flips.astype(jnp.float32) / kept.astype(jnp.float32)
        much, some, few = share > 0.1, share > 0.005, flips > 0
        raised = state.raised | some
        rise = jnp.where(much, 1.3, jnp.where(some, 1.2, jnp.where(few, 1.1, 1.0)))
        penalty = jnp.clip(state.penalty * jnp.where(raised, rise, 0.2), *_PENALTIES)
        settled = raised & ~few
        last = (state.looks + 1) * self.every - 1
        late = (last >= _LATE) & (share < 0.0003)
        # A few flips under a penalty that was never raised: it was too high from the start.
        again = few & ~raised
        fitted, sparse, dual = (
            jnp.where(again, old, new) for old, new in zip(first[:3], state[:3], strict=True)
        )
        return _State(
            fitted, sparse, dual, state.mask, penalty, raised, state.looks + 1, settled | late
        )

    def _mask(self, weight: jax.Array, target: Target) -> Mask:
        return chosen(jnp.abs(weight), target, self.select)


def alps(
    *,
    damping: float = 0.01,
    penalty: float = 0.1,
    iterations: int = 300,
    every: int = 3,
    refinements: int = 10,
    select: Select = per_matrix,
) -> ALPS:
    """Fit sparse weights by ADMM with a rising penalty, then by conjugate gradients (ALPS).

    With G the damped Gram matrix scaled to a diagonal of ones, B the weight times the norms of its
    inputs, ``Y = G B_dense`` and ρ the penalty, each iteration is

    ``B = (G + ρI)⁻¹ (Y − V + ρD)``, ``D = best(B + V/ρ)``, ``V ← V + ρ(B − D)``

    where ``best`` keeps the largest. From time to time ρ is raised, the more the more of the mask
    has changed, until it stays. Then each output's kept weights are refined by conjugate gradients.

    ``(G + ρI)⁻¹`` is applied by one Cholesky factorisation for each ρ, in float32, where the
    published code diagonalises G in float64 once: it is faster, and its figures are met.

    Args:
      damping: what is added to the diagonal of the Gram matrix, as a share of its mean.
      penalty: the first ρ. If few weights or none change at once, it is lowered instead.
      iterations: of ADMM, at most.
      every: iterations between two looks at the mask.
      refinements: steps of conjugate gradients.
      select: which weights compete, without an ``NM`` pattern.

    Returns:
      The method, ``(weight, inputs, target) -> pruned``. It reads ``inputs.gram``. The penalty
      makes any Gram matrix regular, so the damping used is the damping given. NaN or infinite
      values in the Gram matrix make the weights NaN.

    Raises:
      ValueError: an argument out of range; when called, inputs or a pattern that do not fit.
      TypeError: an argument that is no number.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> weight = jnp.array([[1.0], [2.0]])
      >>> gram = jnp.array([[1.0, 0.9], [0.9, 1.0]])
      >>> inputs = posttraining.Inputs(jnp.float32(1), jnp.float32(2), gram=gram)
      >>> pruned = posttraining.alps(damping=0.0)(weight, inputs, posttraining.Target(0.5))
      >>> pruned.weight.round(3)  # the second input stands in for the first
      Array([[0. ],
             [2.9]], dtype=float32)

    Reference:
      Meng et al., ALPS: improved optimization for highly sparse one-shot pruning for large language
      models, arXiv:2406.07831.
    """
    return ALPS(damping, penalty, iterations, every, refinements, select)


def _refined(problem: _Problem, start: jax.Array, mask: Mask, steps: int) -> jax.Array:
    """Fit the weights that are kept to the outputs, by conjugate gradients of each output."""

    def ratio(top: jax.Array, bottom: jax.Array) -> jax.Array:
        bottom = jnp.sum(bottom, 0, keepdims=True)
        return jnp.sum(top, 0, keepdims=True) / jnp.where(bottom == 0.0, 1e-8, bottom)

    def step(_: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        weight, residual, direction = state
        turned = product(problem.gram, direction)
        length = ratio(residual * residual, direction * turned)
        weight = weight + length * direction
        new = jnp.where(mask, residual - length * turned, 0.0)
        return weight, new, new + ratio(new * new, residual * residual) * direction

    residual = jnp.where(mask, problem.pull - product(problem.gram, start), 0.0)
    return lax.fori_loop(0, steps, step, (start, residual, residual))[0]
