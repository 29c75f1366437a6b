"""ITOP: explore most of the weights in the course of sparse training (arXiv:2102.02887)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune import allocation as allocations
from jaxprune._core import paths
from jaxprune._core.packing import is_packed, unpack
from jaxprune._core.prunable import Where, default_where
from jaxprune.masks import Patterns
from jaxprune.patterns import Unstructured
from jaxprune.transforms import growth as growths
from jaxprune.transforms import moments as moment_rules
from jaxprune.transforms._dynamic import Memory, dynamic_named, settings_of
from jaxprune.transforms._state import find_states
from jaxprune.transforms.drops import Drop
from jaxprune.transforms.growth import Growth
from jaxprune.transforms.moments import Moments
from jaxprune.types import Allocation, Shapes


def itop(
    inner: optax.GradientTransformation,
    sparsity: float,
    *,
    end: int,
    every: int = 4000,
    begin: int | None = None,
    drop: Drop = 0.5,
    growth: Growth = growths.gradient,
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
    """Train sparse from the start, and keep count of the weights that were ever live (ITOP).

    `jaxprune.dynamic` with rare, large updates, so that grown weights have time to become large
    before they are judged, and a record of all weights that were live at some time:
    ``fired ← fired ∨ mask``. `jaxprune.itop_rate` gives their share, which should come near 1.

    Args:
      inner: the optimizer to wrap.
      sparsity: share of zeros among the prunable weights, in [0, 1).
      end: step from which masks stay.
      every: steps between updates of the masks; the paper takes 4000 with ``growth.gradient`` and
        1500 with ``growth.random``.
      begin: as in `jaxprune.dynamic`.
      drop: share of the live weights that an update drops, in [0, 1), or a function of the step.
      growth: as in `jaxprune.dynamic`.
      pattern: as in `jaxprune.dynamic`.
      allocation: as in `jaxprune.make_masks`.
      where: as in `jaxprune.make_masks`.
      layers: as in `jaxprune.make_masks`.
      moments: as in `jaxprune.dynamic`.
      regrow: as in `jaxprune.dynamic`.
      seed: seed of the first masks and of random growth.
      packed: as in `jaxprune.gradual`; the record is packed too.
      axis_names: as in `jaxprune.gradual`.
      shapes: as in `jaxprune.gradual`.

    Returns:
      An optax transform. The record adds a byte a weight to the state, or a bit if packed.

    Raises:
      ValueError: as in `jaxprune.dynamic`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> tx = jaxprune.itop(optax.sgd(0.1), 0.75, every=1, end=4, drop=0.5)
      >>> params = {"kernel": jnp.ones((4, 4))}
      >>> opt_state = tx.init(params)
      >>> float(jaxprune.itop_rate(opt_state))
      0.25
      >>> for step in range(4):
      ...     grads = {"kernel": jnp.roll(jnp.arange(16.0), 5 * step).reshape(4, 4)}
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> float(jaxprune.itop_rate(opt_state)) > 0.25
      True

    Reference:
      Liu et al., Do we actually need dense over-parameterization?, arXiv:2102.02887.
    """
    settings = settings_of(
        sparsity,
        every=every,
        end=end,
        begin=begin,
        drop=drop,
        growth=growth,
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
        track_fired=True,
    )
    return dynamic_named("itop", inner, settings)


def itop_rate(opt_state: Any) -> jax.Array:
    """Return the share of the prunable weights that were live at some time.

    ``R = |fired| / |weights|``: at the start the density, at most 1.

    Args:
      opt_state: state of an optimizer that holds `jaxprune.itop`, at any depth.

    Returns:
      A number in [0, 1], float32 of shape ().

    Raises:
      ValueError: ``opt_state`` holds no `jaxprune.itop`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> tx = jaxprune.itop(optax.sgd(0.1), 0.75, every=1, end=4)
      >>> float(jaxprune.itop_rate(tx.init({"kernel": jnp.ones((4, 4))})))
      0.25

    Reference:
      Liu et al., Do we actually need dense over-parameterization?, arXiv:2102.02887.
    """
    records = [s.extra.fired for s in find_states(opt_state) if isinstance(s.extra, Memory)]
    fired = [
        unpack(leaf) for record in records for leaf in jax.tree.leaves(record, is_leaf=is_packed)
    ]
    if not fired:
        names = paths.listed([state.method.name for state in find_states(opt_state)])
        raise ValueError(
            f"opt_state holds no record of fired weights; its transforms are {names}. "
            "Train with jaxprune.itop."
        )
    total = sum(leaf.size for leaf in fired)
    shares = [jnp.mean(leaf, dtype=jnp.float32) * jnp.float32(leaf.size / total) for leaf in fired]
    return jnp.sum(jnp.stack(shares))
