"""Dynamic sparse training: drop the least, grow others, and keep the number of live weights."""

from collections.abc import Mapping, Sequence

import optax

from jaxprune import allocation as allocations
from jaxprune import scores
from jaxprune._core.prunable import Where, default_where
from jaxprune.masks import Patterns
from jaxprune.patterns import Unstructured
from jaxprune.transforms import growth as growths
from jaxprune.transforms import moments as moment_rules
from jaxprune.transforms._dynamic import dynamic_named, settings_of
from jaxprune.transforms.drops import Drop
from jaxprune.transforms.growth import Growth
from jaxprune.transforms.moments import Moments
from jaxprune.types import Allocation, Score, Shapes


def dynamic(
    inner: optax.GradientTransformation,
    sparsity: float,
    *,
    every: int,
    end: int,
    begin: int | None = None,
    drop: Drop = 0.3,
    growth: Growth = growths.gradient,
    score: Score = scores.magnitude,
    pattern: Patterns = Unstructured(),
    allocation: Allocation = allocations.erdos_renyi_kernel,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
    moments: Moments = moment_rules.fresh,
    regrow: bool = True,
    seed: int = 0,
    packed: bool = False,
    axis_names: Sequence[str] | None = None,
    shapes: Shapes | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Train sparse from the start, and move the live weights to where they are needed.

    Masks start at random. At ``begin`` and every few steps after, below ``end``, each layer drops
    ``⌊drop · live⌋`` of its live weights, those of the least score, and grows as many: those that
    ``growth`` scores highest among the weights that are not kept. Grown weights start at zero.
    The number of live weights of a layer never changes. `jaxprune.rigl`, `jaxprune.set_training`
    and `jaxprune.itop` are this with their published settings.

    Args:
      inner: the optimizer to wrap; it sees zero gradients for pruned weights. ``optax.MultiSteps``
        goes outside: growth then sees the mean dense gradient.
      sparsity: share of zeros among the prunable weights, in [0, 1), from the first step on.
      every: steps between updates of the masks.
      end: step from which masks stay.
      begin: first update, a step counted from 0; by default ``every``.
      drop: share of the live weights that an update drops, in [0, 1): a number, or a function of
        the step that is evaluated on the host, such as
        `jaxprune.transforms.cosine_drop` or `linear_drop`.
      growth: which pruned weights come back.
      score: which live weights stay, ``(params, grads) -> scores``.
      pattern: as in `jaxprune.make_masks`. Within N:M, weights are dropped over the whole layer,
        and each group grows what it lost; blocks and channels are dropped and grown whole.
      allocation: as in `jaxprune.make_masks`; not `allocation.global_`.
      where: as in `jaxprune.make_masks`.
      layers: as in `jaxprune.make_masks`.
      moments: what the inner optimizer's moments become where the mask changed.
      regrow: let an update grow what it has just dropped, as the published code does; such a
        weight keeps its value.
      seed: seed of the first masks and of random growth.
      packed: store masks as one bit a weight, instead of one byte.
      axis_names: as in `jaxprune.gradual`.
      shapes: as in `jaxprune.gradual`.

    Returns:
      An optax transform. The parameters that ``init`` sees may be dense: the first update sets the
      pruned ones to zero.

    Raises:
      ValueError: a number out of range, an ``every`` that leaves no update before ``end``, or a
        pattern that does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> tx = jaxprune.dynamic(optax.sgd(0.1), 0.5, every=2, end=10, drop=0.5)
      >>> params = {"kernel": jnp.arange(3.0, 19.0).reshape(4, 4)}
      >>> opt_state = tx.init(params)
      >>> first = jaxprune.get_masks(opt_state)["kernel"]
      >>> for _ in range(3):
      ...     updates, opt_state = tx.update({"kernel": jnp.eye(4)}, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> last = jaxprune.get_masks(opt_state)["kernel"]
      >>> int(first.sum()), int(last.sum()), bool((first != last).any())
      (8, 8, True)

    Reference:
      Evci et al., Rigging the lottery, arXiv:1911.11134.
    """
    settings = settings_of(
        sparsity,
        every=every,
        end=end,
        begin=begin,
        drop=drop,
        growth=growth,
        score=score,
        pattern=pattern,
        allocation=allocation,
        where=where,
        layers=layers,
        moments=moments,
        regrow=regrow,
        seed=seed,
        packed=packed,
        axis_names=axis_names,
        shapes=shapes,
    )
    return dynamic_named("dynamic", inner, settings)
