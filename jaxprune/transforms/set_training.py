"""SET: dynamic sparse training that grows at random (arXiv:1707.04780)."""

from collections.abc import Mapping, Sequence

import optax

from jaxprune import allocation as allocations
from jaxprune._core.prunable import Where, default_where
from jaxprune.masks import Patterns
from jaxprune.patterns import Unstructured
from jaxprune.transforms import growth
from jaxprune.transforms import moments as moment_rules
from jaxprune.transforms._dynamic import dynamic_named, settings_of
from jaxprune.transforms.drops import Drop
from jaxprune.transforms.moments import Moments
from jaxprune.types import Allocation, Shapes


def set_training(
    inner: optax.GradientTransformation,
    sparsity: float,
    *,
    end: int,
    every: int = 100,
    begin: int | None = None,
    drop: Drop = 0.3,
    pattern: Patterns = Unstructured(),
    allocation: Allocation = allocations.erdos_renyi,
    where: Where = default_where,
    layers: Mapping[str, int] | None = None,
    moments: Moments = moment_rules.fresh,
    regrow: bool = True,
    seed: int = 0,
    packed: bool = False,
    axis_names: Sequence[str] | None = None,
    shapes: Shapes | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Train sparse from the start: drop by magnitude, grow at random (SET).

    `jaxprune.dynamic` with ``growth.random``: sparse evolutionary training. It needs no dense
    gradients.

    Args:
      inner: the optimizer to wrap.
      sparsity: share of zeros among the prunable weights, in [0, 1).
      end: step from which masks stay.
      every: steps between updates of the masks; the paper takes an epoch.
      begin: as in `jaxprune.dynamic`.
      drop: share of the live weights that an update drops, in [0, 1), or a function of the step.
      pattern: as in `jaxprune.dynamic`.
      allocation: as in `jaxprune.make_masks`.
      where: as in `jaxprune.make_masks`.
      layers: as in `jaxprune.make_masks`.
      moments: as in `jaxprune.dynamic`.
      regrow: as in `jaxprune.dynamic`.
      seed: seed of the first masks and of growth.
      packed: as in `jaxprune.gradual`.
      axis_names: as in `jaxprune.gradual`.
      shapes: as in `jaxprune.gradual`.

    Returns:
      An optax transform. The least magnitudes are dropped whatever their sign; the paper drops
      the same share of the positive and of the negative weights.

    Raises:
      ValueError: as in `jaxprune.dynamic`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> tx = jaxprune.set_training(optax.sgd(0.1), 0.5, every=1, end=4, drop=0.5)
      >>> params = {"kernel": jnp.arange(1.0, 17.0).reshape(4, 4)}
      >>> opt_state = tx.init(params)
      >>> first = jaxprune.get_masks(opt_state)["kernel"]
      >>> for _ in range(3):
      ...     updates, opt_state = tx.update({"kernel": 0 * params["kernel"]}, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> last = jaxprune.get_masks(opt_state)["kernel"]
      >>> int(last.sum()), bool((first != last).any())
      (8, True)

    Reference:
      Mocanu et al., Scalable training of artificial neural networks with adaptive sparse
      connectivity inspired by network science, arXiv:1707.04780.
    """
    settings = settings_of(
        sparsity,
        every=every,
        end=end,
        begin=begin,
        drop=drop,
        growth=growth.random,
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
    return dynamic_named("set_training", inner, settings)
