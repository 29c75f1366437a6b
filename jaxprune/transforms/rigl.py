"""RigL: dynamic sparse training that grows by the gradient (arXiv:1911.11134)."""

from collections.abc import Mapping, Sequence

import optax

from jaxprune import allocation as allocations
from jaxprune._core.prunable import Where, default_where
from jaxprune.masks import Patterns
from jaxprune.patterns import Unstructured
from jaxprune.transforms import growth
from jaxprune.transforms import moments as moment_rules
from jaxprune.transforms._dynamic import dynamic_named, settings_of
from jaxprune.transforms.drops import as_share, cosine_drop
from jaxprune.transforms.moments import Moments
from jaxprune.types import Allocation, Shapes


def rigl(
    inner: optax.GradientTransformation,
    sparsity: float,
    *,
    end: int,
    every: int = 100,
    begin: int | None = None,
    drop: float = 0.3,
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
    """Train sparse from the start: drop by magnitude, grow by the dense gradient (RigL).

    `jaxprune.dynamic` with ``growth.gradient`` and a drop share of
    ``drop / 2 · (1 + cos(π · step / end))``.

    Args:
      inner: the optimizer to wrap.
      sparsity: share of zeros among the prunable weights, in [0, 1).
      end: step from which masks stay; the paper takes 75% of training.
      every: steps between updates of the masks.
      begin: as in `jaxprune.dynamic`.
      drop: share of the live weights that the first update drops, in [0, 1).
      pattern: as in `jaxprune.dynamic`.
      allocation: as in `jaxprune.make_masks`.
      where: as in `jaxprune.make_masks`.
      layers: as in `jaxprune.make_masks`.
      moments: as in `jaxprune.dynamic`.
      regrow: as in `jaxprune.dynamic`.
      seed: seed of the first masks.
      packed: as in `jaxprune.gradual`.
      axis_names: as in `jaxprune.gradual`.
      shapes: as in `jaxprune.gradual`.

    Returns:
      An optax transform. The optimizer's step is taken on mask updates too, which the published
      code skips.

    Raises:
      ValueError: as in `jaxprune.dynamic`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> tx = jaxprune.rigl(optax.sgd(0.1), 0.75, every=1, end=4, drop=0.5)
      >>> params = {"kernel": jnp.ones((4, 4))}
      >>> opt_state = tx.init(params)
      >>> params = jaxprune.apply_masks(params, jaxprune.get_masks(opt_state))
      >>> grads = {"kernel": jnp.eye(4)}
      >>> for _ in range(3):
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> int(jaxprune.get_masks(opt_state)["kernel"].sum())
      4

    Reference:
      Evci et al., Rigging the lottery, arXiv:1911.11134.
    """
    settings = settings_of(
        sparsity,
        every=every,
        end=end,
        begin=begin,
        drop=cosine_drop(as_share("drop", drop), end),
        growth=growth.gradient,
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
    return dynamic_named("rigl", inner, settings)
