"""ADMM pruning: weights that fit the outputs, and weights that are sparse, made to agree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.patterns import NM
from jaxprune.posttraining.gram import checked_gram, checked_number, damped, normalised, product
from jaxprune.posttraining.matrix import Inputs, Pruned, Target
from jaxprune.posttraining.select import Select, per_group, per_matrix
from jaxprune.types import Mask


@dataclasses.dataclass(frozen=True)
class ADMM:
    """ADMM pruning of one matrix; see :func:`admm`."""

    damping: float = 0.1
    iterations: int = 20
    mask_updates: int = 15
    gradual: bool | None = None
    select: Select = per_matrix

    def __post_init__(self) -> None:
        checked_number("damping", self.damping, 0.0)
        checked_number("iterations", self.iterations, 0, whole=True)
        checked_number("mask_updates", self.mask_updates, 0, whole=True)

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of ``Inputs`` that it reads."""
        return ("gram",)

    def __call__(self, weight: jax.Array, inputs: Inputs, target: Target) -> Pruned:
        """Return the pruned weight, in its own dtype, its mask, and the damping used."""
        gram, norm = normalised(checked_gram("ADMM", weight, inputs, target))
        gram = damped(gram, self.damping)
        scaled = weight.astype(jnp.float32) * norm[:, None]
        found, mask = self._solve(scaled, gram, target)
        kept = jnp.where(mask, found / norm[:, None], 0.0)
        return Pruned(kept.astype(weight.dtype), mask, jnp.float32(self.damping))

    def _solve(self, dense: jax.Array, gram: jax.Array, target: Target) -> tuple[jax.Array, Mask]:
        """Return the weights and a mask; the last mask update has the target's own sparsity."""
        pull = product(gram, dense)
        eye = jnp.eye(gram.shape[0], dtype=gram.dtype)
        factor = jax.scipy.linalg.cho_factor(gram + eye)
        inverse = jax.scipy.linalg.cho_solve(factor, eye)
        updates = min(self.mask_updates, self.iterations)

        def fit(state: tuple[jax.Array, jax.Array], mask: Mask) -> tuple[jax.Array, jax.Array]:
            both = state[0] + state[1]
            sparse = jnp.where(mask, both, 0.0)
            dual = both - sparse
            return product(inverse, pull + sparse - dual), dual

        def renewed(turn: Any, state: Any) -> Any:
            mask = self._mask(state[0] + state[1], target, turn)
            return fit(state, mask)

        state = dense, jnp.zeros_like(dense)
        state = lax.fori_loop(0, updates - 1, renewed, state)
        mask = self._mask(state[0] + state[1], target, None)
        rest = self.iterations - max(updates - 1, 0)
        state = lax.fori_loop(0, rest, lambda _, state: fit(state, mask), state)
        return state[0] + state[1], mask

    def _mask(self, weight: jax.Array, target: Target, turn: Any) -> Mask:
        """Choose the weights to keep at an update of the mask, the last one if turn is None."""
        scores = jnp.abs(weight)
        if isinstance(target.pattern, NM):
            best = per_group(scores, target.pattern)
            if turn is None or self.gradual is False:
                return best
            scores = jnp.where(best, jnp.inf, scores)  # the others go first, step by step
            final: Any = 1.0 - target.pattern.live(weight.shape) / weight.size
            return per_matrix(scores, self._share(turn) * jnp.float32(final))
        rises = self.select is not per_matrix if self.gradual is None else self.gradual
        if turn is None or not rises:
            return self.select(scores, target.sparsity, keep_last=True)
        final = jnp.asarray(target.sparsity, jnp.float32)
        return self.select(scores, self._share(turn) * final, keep_last=True)

    def _share(self, turn: jax.Array) -> jax.Array:
        left = 1.0 - (turn.astype(jnp.float32) + 1.0) / float(self.mask_updates)
        return 1.0 - left**3


def admm(
    *,
    damping: float = 0.1,
    iterations: int = 20,
    mask_updates: int = 15,
    gradual: bool | None = None,
    select: Select = per_matrix,
) -> ADMM:
    """Fit sparse weights to the outputs of the dense ones by ADMM.

    With G the Gram matrix scaled to a diagonal of ones and damped, and Ŵ the weight times the norms
    of its inputs, each iteration is

    ``Z = mask ⊙ (Ŵ + D)``, ``D ← D + Ŵ − Z``, ``Ŵ ← (G + I)⁻¹ (G Ŵ_dense + Z − D)``;

    the first iterations choose the mask anew from ``|Ŵ + D|``. Computed in float32.

    Args:
      damping: what is added to the diagonal of G, as a share of its mean.
      iterations: of ADMM. 0 masks the dense weights, as Wanda does with the same selection.
      mask_updates: iterations that choose the mask anew; 0 chooses it once, from the dense weights.
      gradual: let the sparsity rise to its end as ``1 − (1 − t/mask_updates)³`` at update t, as the
        paper has it. None: as the published code, with ``NM(n, m)`` and every selection but
        `per_matrix`. With ``NM`` each group's n best are kept from the start and the others go step
        by step, the smallest of the matrix first.
      select: which weights compete, without an ``NM`` pattern.

    Returns:
      The method, ``(weight, inputs, target) -> pruned``. It reads ``inputs.gram``. The penalty of 1
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
      >>> pruned = posttraining.admm(damping=0.0, iterations=200)(
      ...     weight, inputs, posttraining.Target(0.5))
      >>> pruned.weight.round(1)  # the second input stands in for the first
      Array([[0. ],
             [2.9]], dtype=float32)

    Reference:
      Boža, Fast and effective weight update for pruned large language models, arXiv:2401.02938.
    """
    return ADMM(damping, iterations, mask_updates, gradual, select)
