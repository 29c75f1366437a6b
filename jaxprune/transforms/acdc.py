"""AC/DC: training that alternates between sparse and dense phases (arXiv:2106.12379)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import allocation as allocations
from jaxprune._core.prunable import Where, default_where
from jaxprune.masks import MaskRule, Patterns, check_target, describe
from jaxprune.patterns import Unstructured
from jaxprune.schedules import as_sparsity
from jaxprune.scores import magnitude
from jaxprune.transforms import moments as moment_rules
from jaxprune.transforms._ranking import Plan, Ranking
from jaxprune.transforms._state import Method
from jaxprune.transforms._timetable import Timetable, as_period, as_step
from jaxprune.transforms.moments import Moments
from jaxprune.transforms.recipe import Recipe, masked_gradients, wrap
from jaxprune.types import Allocation, Score, Shapes


def acdc(
    inner: optax.GradientTransformation,
    sparsity: float,
    *,
    begin: int,
    every: int,
    end: int,
    decompressed: int | None = None,
    score: Score = magnitude,
    pattern: Patterns = Unstructured(),
    allocation: Allocation | None = None,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
    moments: Moments = moment_rules.mean_of_live,
    packed: bool = False,
    axis_names: Sequence[str] | None = None,
    shapes: Shapes | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Alternate between compressed and decompressed phases, and end compressed (AC/DC).

    Training is dense until ``begin``. There the weights of the least magnitude are pruned, and for
    ``every`` steps the others train under a fixed mask; then all weights train again for
    ``decompressed`` steps, the pruned ones from exactly zero, which they leave in the second. As
    many such pairs follow as fit whole before ``end``, where the model is pruned for the last time:

      compressed from ``begin + i · pair``, decompressed ``every`` steps later, for all ``i`` with
      ``begin + (i + 1) · pair ≤ end``, where ``pair = every + decompressed``; compressed from
      ``end``.

    What is left over before ``end`` lengthens the last dense phase. ResNet-50 in 100 epochs takes,
    in epochs, ``begin=10, every=5, end=85``.

    Args:
      inner: the optimizer to wrap; it sees zero gradients for pruned weights. ``optax.MultiSteps``
        goes outside.
      sparsity: of the compressed phases, in [0, 1).
      begin: first compression, a step counted from 0.
      every: steps of a compressed phase.
      end: last compression, after which the mask stays.
      decompressed: steps of a decompressed phase, 2 or more; by default ``every``.
      score: what a weight is worth, ``(params, grads) -> scores``.
      pattern: as in `jaxprune.make_masks`.
      allocation: as in `jaxprune.make_masks`. None ranks the weights of all layers together, as
        published, where the pattern is `Unstructured`, and is `allocation.uniform` for others.
      where: as in `jaxprune.make_masks`.
      layers: as in `jaxprune.make_masks`.
      moments: what the inner optimizer's moments become where the mask changed. The published code
        clears the momentum of all weights at each decompression.
      packed: store masks as one bit a weight, instead of one byte.
      axis_names: as in `jaxprune.gradual`.
      shapes: as in `jaxprune.gradual`.

    Returns:
      An optax transform. The parameters just before step ``end`` are the dense model, those after
      the last step the sparse one.

    Raises:
      ValueError: a number out of range, an end that leaves no decompressed phase, or a pattern
        that does not fit.
      TypeError: a step that is not an integer.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> params = {"kernel": jnp.array([[4.0, 3.0], [2.0, 1.0]])}
      >>> tx = jaxprune.acdc(optax.sgd(1.0), 0.5, begin=0, every=1, decompressed=2, end=3)
      >>> opt_state = tx.init(params)
      >>> for _ in range(4):
      ...     grads = {"kernel": jnp.array([[0.0, 0.0], [0.0, -8.0]])}
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params["kernel"].ravel(), jaxprune.get_masks(opt_state)["kernel"].sum())
      [4. 3. 0. 0.] 2
      [4. 3. 0. 0.] 4
      [4. 3. 0. 8.] 4
      [ 4.  0.  0. 16.] 2

    Reference:
      Peste et al., AC/DC: Alternating compressed/decompressed training of deep neural networks,
      arXiv:2106.12379.
    """
    sparsity = as_sparsity("sparsity", sparsity)
    plan = _alternating(sparsity, _phases(begin, every, end, decompressed))
    check_target(pattern, sparsity)
    if allocation is None:
        single = isinstance(pattern, Unstructured)
        allocation = allocations.global_() if single else allocations.uniform
    rule = MaskRule(pattern, allocation, dict(layers or {}))
    ranking = Ranking(score, rule, plan, shapes, axis_names)
    recipe = Recipe(
        method=Method("acdc", reached=plan.timetable.end, course=ranking.course),
        text=f"acdc|{plan.text}|{describe(score)}|{describe(moments)}|{rule.describe()}",
        where=where,
        timetable=plan.timetable,
        init=ranking.init,
        change=ranking.change,
        gradients=masked_gradients,
        moments=moments,
        packed=packed,
        axis_names=axis_names,
    )
    return wrap(inner, recipe)


@dataclasses.dataclass(frozen=True)
class _Phases(Timetable):
    """Compressions and decompressions in turn, from ``begin`` to the last compression at ``end``.

    Attributes:
      decompressed: steps of a decompressed phase; ``every`` are those of a compressed one.
    """

    decompressed: int

    def steps(self) -> list[int]:
        """Return the steps at which masks change: compress, decompress, ..., compress."""
        assert self.end is not None
        pair = self.every + self.decompressed
        starts = range(self.begin, self.end - pair + 1, pair)
        return [step for start in starts for step in (start, start + self.every)] + [self.end]

    def fires(self, step: jax.Array) -> jax.Array:
        """Tell whether masks change at a (traced) step."""
        return jnp.any(step == np.asarray(self.steps(), np.int32))

    def index(self, step: jax.Array) -> jax.Array:
        """Return the number of the change at a (traced) step, from 0."""
        return jnp.sum(step > np.asarray(self.steps(), np.int32), dtype=jnp.int32)


def _alternating(sparsity: float, phases: _Phases) -> Plan:
    """Return the plan: a sparsity in every other phase, and none between."""
    values = [0.0 if turn % 2 else sparsity for turn, _ in enumerate(phases.steps())]
    return Plan(phases, values, sparsity, f"{sparsity}|{phases}")


def _phases(begin: Any, every: Any, end: Any, decompressed: Any) -> _Phases:
    begin, end = as_step("begin", begin), as_step("end", end)
    every = as_period("every", every)
    dense = every if decompressed is None else as_period("decompressed", decompressed)
    if dense < 2:
        raise ValueError(
            f"{'every' if decompressed is None else 'decompressed'}={dense} makes decompressed "
            "phases of one step, but weights that come back move from the second on. Pass "
            "decompressed=2 or more."
        )
    if begin + every + dense > end:
        raise ValueError(
            f"begin={begin}, every={every} and decompressed={dense} leave no decompressed phase "
            f"before end={end}: nothing would alternate. Shorten the phases or train longer; to "
            "prune once use jaxprune.gradual."
        )
    return _Phases(begin, every, end, dense)
