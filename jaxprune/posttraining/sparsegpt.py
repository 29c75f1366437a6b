"""SparseGPT: prune input after input, and let the inputs still to come make good the error."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.patterns import NM
from jaxprune.posttraining.gram import checked_gram, checked_number, product, upper_factor
from jaxprune.posttraining.matrix import Inputs, Pruned, Target
from jaxprune.posttraining.select import Select, per_group, per_matrix

# Inputs between two updates of the rest of a block. They are settled without a loop: a GPU takes
# longer to start a kernel than to run it, and XLA makes one of 8 inputs and three of 16.
_PANEL = 8


@dataclasses.dataclass(frozen=True)
class SparseGPT:
    """SparseGPT on one matrix; see :func:`sparsegpt`."""

    blocksize: int = 128
    damping: float = 0.01
    select: Select = per_matrix

    def __post_init__(self) -> None:
        checked_number("blocksize", self.blocksize, 1, whole=True)
        checked_number("damping", self.damping, 0.0)

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of ``Inputs`` that it reads."""
        return ("gram",)

    def __call__(self, weight: jax.Array, inputs: Inputs, target: Target) -> Pruned:
        """Return the pruned weight, in its own dtype, its mask, and the damping used."""
        gram = checked_gram("SparseGPT", weight, inputs, target)
        self._check(target)
        sequences = jnp.maximum(jnp.asarray(inputs.sequences).astype(jnp.float32), 1.0)
        hessian = gram * (2.0 / sequences)
        dead = jnp.diagonal(hessian) == 0.0
        hessian = hessian + jnp.diag(dead.astype(jnp.float32))
        dense = jnp.where(dead[:, None], 0.0, weight.astype(jnp.float32))
        factor = upper_factor(hessian, self.damping)
        kept, mask = self._blocks(dense, factor.upper, target)
        return Pruned(kept.astype(weight.dtype), mask, factor.damping)

    def _check(self, target: Target) -> None:
        if isinstance(target.pattern, NM) and self.blocksize % target.pattern.m:
            raise ValueError(
                f"blocksize={self.blocksize} cuts the groups of {target.pattern!r}. Pass a "
                f"multiple of {target.pattern.m}."
            )

    def _blocks(
        self, dense: jax.Array, upper: jax.Array, target: Target
    ) -> tuple[jax.Array, jax.Array]:
        """Prune block after block; a last one that is short is a program of its own."""
        inputs, outputs = dense.shape
        size = min(self.blocksize, inputs)
        whole, rest = divmod(inputs, size)

        def step(change: jax.Array, number: jax.Array) -> tuple[jax.Array, Any]:
            done = self._block(dense, upper, change, number * size, size, target)
            before = lax.dynamic_slice_in_dim(dense, number * size, size)
            return lax.dynamic_update_slice_in_dim(change, before - done[0], number * size, 0), done

        change, parts = lax.scan(step, jnp.zeros_like(dense), jnp.arange(whole, dtype=jnp.int32))
        kept, mask = (part.reshape(whole * size, outputs) for part in parts)
        if not rest:
            return kept, mask
        last = self._block(dense, upper, change, jnp.int32(whole * size), rest, target)
        return jnp.concatenate([kept, last[0]]), jnp.concatenate([mask, last[1]])

    def _block(
        self,
        dense: jax.Array,
        upper: jax.Array,
        change: jax.Array,
        first: jax.Array,
        rows: int,
        target: Target,
    ) -> tuple[jax.Array, jax.Array]:
        """Return the pruned weights of a block and their mask.

        ``change`` is dense − pruned of the blocks before. With M the upper factor and b the block,
        ``W_b + M_bb⁻ᵀ Mᵀ_{:,b} change`` has the least error that is possible after it.
        """
        columns = lax.dynamic_slice_in_dim(upper, first, rows, axis=1)
        corner = lax.dynamic_slice_in_dim(columns, first, rows)
        inverse = _inverse(corner)
        pull = product(columns.T, change)
        block = lax.dynamic_slice_in_dim(dense, first, rows) + product(inverse.T, pull)
        pivots = jnp.diagonal(corner)
        onward = jnp.triu(inverse, 1) * pivots[:, None]
        if isinstance(target.pattern, NM):
            block, mask = _in_groups(block, onward, pivots, target.pattern)
        else:
            scores = jnp.abs(block) * pivots[:, None]
            mask = self.select(scores, target.sparsity, keep_last=True)
            block = _in_panels(block, onward, mask)
        return jnp.where(mask, block, 0.0), mask


def sparsegpt(
    *, blocksize: int = 128, damping: float = 0.01, select: Select = per_matrix
) -> SparseGPT:
    """Prune input after input and let the later ones make good the error (SparseGPT).

    With ``H = 2/sequences · Σ x xᵀ``, damped, and ``H⁻¹ = UᵀU``, U upper triangular, input i scores
    ``w² / U_ii²``. A pruned weight w of input i changes those of the inputs j > i of the same
    output by ``−w · U_ij / U_ii``, which is the change that keeps the outputs closest. With
    ``Unstructured()`` the mask of a block of inputs is chosen when its turn comes, over all outputs
    together; with ``NM(n, m)`` that of a group when its turn comes. Computed in float32.

    U is not inverted for. With ``H = M Mᵀ``, M upper, ``U = M⁻¹``, and what the blocks before ask
    of block b is ``M_bb⁻ᵀ Mᵀ_{:,b} (W − pruned)``: one factorisation where the published code makes
    two and an inverse.

    Inputs that were zero throughout have no influence. Their weights become 0, so the weight can
    have more zeros than was asked for; the mask counts them as the choice made them.

    Args:
      blocksize: inputs among which an unstructured mask is chosen; a multiple of m with
        ``NM(n, m)``.
      damping: what is added to the diagonal of H, as a share of its mean. If the factorisation
        fails, it is raised tenfold until it does not; ``pruned.damping`` is what was used. It is at
        most 10^8 times as large. NaN or infinite values in the Gram matrix make the weights NaN.
      select: which weights of a block compete, without an ``NM`` pattern. `per_matrix` prunes
        ``⌊rows · out · sparsity⌋`` of each block, exactly; `below_threshold` is the rule of the
        published code, which prunes one more; with `per_output` each output keeps the same number.

    Returns:
      The method, ``(weight, inputs, target) -> pruned``. It reads ``inputs.gram`` and
      ``inputs.sequences``, the latter only for dead inputs, whose diagonal is taken to be 1.

    Raises:
      ValueError: an argument out of range; when called, inputs or a pattern that do not fit.
      TypeError: an argument that is no number.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import posttraining
      >>> weight = jnp.array([[1.0], [2.0]])
      >>> gram = jnp.array([[1.0, 0.9], [0.9, 1.0]])
      >>> inputs = posttraining.Inputs(jnp.float32(1), jnp.float32(2), gram=gram)
      >>> method = posttraining.sparsegpt(damping=0.0)
      >>> pruned = method(weight, inputs, posttraining.Target(0.5))
      >>> pruned.weight.round(3)  # the second input stands in for the first
      Array([[0. ],
             [2.9]], dtype=float32)

    Reference:
      Frantar and Alistarh, SparseGPT: massive language models can be accurately pruned in
      one-shot, arXiv:2301.00774.
    """
    return SparseGPT(blocksize, damping, select)


def _in_panels(block: jax.Array, onward: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the compensated weights of a block with a given mask."""
    whole, rest = divmod(block.shape[0], _PANEL)

    def panel(first: Any, block: jax.Array, rows: int) -> jax.Array:
        chosen = lax.dynamic_slice_in_dim(mask, first, rows)
        return _panel(block, onward, chosen, first)

    if whole:  # a loop of no turns is traced all the same
        block = lax.fori_loop(0, whole, lambda i, block: panel(i * _PANEL, block, _PANEL), block)
    return panel(whole * _PANEL, block, rest) if rest else block


def _in_groups(
    block: jax.Array, onward: jax.Array, pivots: jax.Array, pattern: NM
) -> tuple[jax.Array, jax.Array]:
    """Return the compensated weights and the mask, decided when a group's turn comes."""
    whole, rest = divmod(block.shape[0], pattern.m)

    def group(
        first: Any, state: tuple[jax.Array, jax.Array], rows: int
    ) -> tuple[jax.Array, jax.Array]:
        block, mask = state
        scale = lax.dynamic_slice_in_dim(pivots, first, rows)
        scores = jnp.abs(lax.dynamic_slice_in_dim(block, first, rows)) * scale[:, None]
        chosen = per_group(scores, pattern)
        mask = lax.dynamic_update_slice_in_dim(mask, chosen, first, 0)
        return _panel(block, onward, chosen, first), mask

    state = block, jnp.zeros_like(block, jnp.bool_)
    if whole:
        state = lax.fori_loop(0, whole, lambda i, s: group(i * pattern.m, s, pattern.m), state)
    return group(whole * pattern.m, state, rest) if rest else state


def _panel(block: jax.Array, onward: jax.Array, mask: jax.Array, first: Any) -> jax.Array:
    """Prune a few neighbouring inputs one after another, then update the rest of the block.

    Row i of ``onward`` says what the loss of 1 at input i takes from the inputs after it. A row
    stays as it was when its turn came; what it loses is where the mask is False.
    """
    rows = mask.shape[0]
    ahead = lax.dynamic_slice_in_dim(onward, first, rows)
    inside = lax.dynamic_slice_in_dim(ahead, first, rows, axis=1)
    panel = _settled(lax.dynamic_slice_in_dim(block, first, rows), inside, mask)
    block = block - product(ahead.T, jnp.where(mask, 0.0, panel))
    return lax.dynamic_update_slice_in_dim(block, panel, first, 0)


def _settled(panel: jax.Array, inside: jax.Array, mask: jax.Array) -> jax.Array:
    """Return a panel after the losses of its own inputs; ``inside`` is its part of ``onward``."""
    size = panel.shape[0]
    if size > _PANEL:  # a large group

        def one(i: Any, panel: jax.Array) -> jax.Array:
            return panel - inside[i][:, None] * jnp.where(mask[i], 0.0, panel[i])[None]

        return lax.fori_loop(0, size - 1, one, panel)
    rows = list(panel)
    for i in range(size - 1):
        lost = jnp.where(mask[i], 0.0, rows[i])
        rows[i + 1 :] = [row - inside[i, j] * lost for j, row in enumerate(rows[i + 1 :], i + 1)]
    return jnp.stack(rows)


def _inverse(upper: jax.Array) -> jax.Array:
    eye = jnp.eye(upper.shape[0], dtype=upper.dtype)
    return lax.linalg.triangular_solve(upper, eye, left_side=True, lower=False)
