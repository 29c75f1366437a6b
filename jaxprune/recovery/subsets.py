"""Retrain a few whole parameters: biases, those of normalisations, or any others (PERP)."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune._core import paths
from jaxprune._core.prunable import Where, select
from jaxprune.recovery.adapters import keep, wide_dtype
from jaxprune.types import Tree

_BIAS = re.compile(r"^b$|(^|_)bias$|^(beta|offset)$")
_NORM = re.compile(r"norm|(^|[^a-z])(bn|gn|ln|rms)([^a-z]|$)", re.IGNORECASE)
_OF_NORM = re.compile(r"^(gamma|beta|offset)$")


def is_bias(path: str, leaf: Any) -> bool:
    """Tell by its name whether a parameter is a bias, those of normalisations included.

    Args:
      path: name of the leaf, as in ``encoder/Dense_0/bias``.
      leaf: the leaf; only floating-point arrays are.

    Returns:
      Whether the last part of the path is ``bias``, ``b``, ``beta`` or ``offset``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import recovery
      >>> names = ("Dense_0/bias", "Dense_0/kernel", "LayerNorm_0/bias", "linear/b")
      >>> [recovery.is_bias(name, jnp.zeros(4)) for name in names]
      [True, False, True, True]
    """
    return _is_float(leaf) and _BIAS.search(path.rsplit("/", 1)[-1]) is not None


def is_norm(path: str, leaf: Any) -> bool:
    """Tell by its name whether a parameter belongs to a normalisation.

    Args:
      path: name of the leaf, as in ``encoder/LayerNorm_0/scale``.
      leaf: the leaf; only floating-point arrays are.

    Returns:
      Whether a part of the path speaks of a normalisation.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import recovery
      >>> names = ("input_layernorm/scale", "Dense_0/kernel", "LayerNorm_0/bias", "ln_1/scale")
      >>> [recovery.is_norm(name, jnp.zeros(4)) for name in names]
      [True, False, True, True]
    """
    parts = path.split("/")
    named = any(_NORM.search(part) for part in parts) or _OF_NORM.search(parts[-1]) is not None
    return _is_float(leaf) and named


def is_bias_or_norm(path: str, leaf: Any) -> bool:
    """Tell by its name whether a parameter is a bias or belongs to a normalisation.

    Args:
      path: name of the leaf.
      leaf: the leaf.

    Returns:
      Whether `is_bias` or `is_norm` says so.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import recovery
      >>> names = ("fc/bias", "norm/scale", "fc/w")
      >>> [recovery.is_bias_or_norm(name, jnp.zeros(4)) for name in names]
      [True, True, False]
    """
    return is_bias(path, leaf) or is_norm(path, leaf)


def only(
    inner: optax.GradientTransformation, where: Where
) -> optax.GradientTransformationExtraArgs:
    """Train some parameters and leave the others as they are.

    Args:
      inner: the optimizer to wrap; it sees and remembers the chosen parameters alone.
      where: which ones: a predicate on ``(path, leaf)``, a regular expression, or a tree of bools.

    Returns:
      An optax transform whose updates of the other parameters are zero: pruned weights stay zero.

    Raises:
      ValueError: nothing is selected.
      TypeError: a selected leaf is not floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from jaxprune import recovery
      >>> tx = recovery.only(optax.sgd(1.0), "head")
      >>> params = {"body": jnp.array([0.0, 2.0]), "head": jnp.array([1.0])}
      >>> updates, _ = tx.update({"body": jnp.ones(2), "head": jnp.ones(1)}, tx.init(params))
      >>> {name: update.tolist() for name, update in updates.items()}
      {'body': [0.0, 0.0], 'head': [-1.0]}
    """

    def chosen(tree: Tree) -> Tree:
        found = select(tree, where)
        return paths.refill(tree, {}, lambda path, leaf: path in found)

    def others(tree: Tree) -> Tree:
        return jax.tree.map(lambda bit: not bit, chosen(tree))

    return optax.chain(optax.masked(inner, chosen), optax.masked(optax.set_to_zero(), others))


def biases(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Train the biases alone: the cheapest way to recover a pruned model.

    Args:
      inner: the optimizer to wrap.

    Returns:
      `only` of `is_bias`.

    Raises:
      ValueError: the model has no bias, as most language models of today.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from jaxprune import recovery
      >>> tx = recovery.biases(optax.sgd(1.0))
      >>> params = {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}
      >>> updates, _ = tx.update({"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}, tx.init(params))
      >>> float(updates["kernel"][0, 0]), float(updates["bias"][0])
      (0.0, -1.0)

    Reference:
      Zimmer et al., PERP: Rethinking the prune-retrain paradigm in the era of LLMs,
      arXiv:2312.15230.
    """
    return only(inner, is_bias)


def norms(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Train the parameters of normalisations alone.

    Args:
      inner: the optimizer to wrap.

    Returns:
      `only` of `is_norm`.

    Raises:
      ValueError: no parameter's name speaks of a normalisation.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from jaxprune import recovery
      >>> tx = recovery.norms(optax.sgd(1.0))
      >>> params = {"kernel": jnp.zeros(1), "norm": {"scale": jnp.ones(1)}}
      >>> updates, _ = tx.update(params | {"kernel": jnp.ones(1)}, tx.init(params))
      >>> float(updates["kernel"][0]), float(updates["norm"]["scale"][0])
      (0.0, -1.0)

    Reference:
      Zimmer et al., PERP: Rethinking the prune-retrain paradigm in the era of LLMs,
      arXiv:2312.15230.
    """
    return only(inner, is_norm)


def biases_and_norms(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Train biases and the parameters of normalisations.

    Args:
      inner: the optimizer to wrap.

    Returns:
      `only` of `is_bias_or_norm`.

    Raises:
      ValueError: the model has neither.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from jaxprune import recovery
      >>> tx = recovery.biases_and_norms(optax.sgd(1.0))
      >>> params = {"kernel": jnp.ones(1), "bias": jnp.ones(1), "norm": {"scale": jnp.ones(1)}}
      >>> updates, _ = tx.update(params, tx.init(params))
      >>> float(updates["kernel"][0]), float(updates["bias"][0]), float(updates["norm"]["scale"][0])
      (0.0, -1.0, -1.0)

    Reference:
      Zimmer et al., PERP: Rethinking the prune-retrain paradigm in the era of LLMs,
      arXiv:2312.15230.
    """
    return only(inner, is_bias_or_norm)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Full:
    """A whole parameter that is trained; see :func:`full`.

    Attributes:
      value: its present value, float32 or wider.
    """

    value: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return tuple(self.value.shape)

    @property
    def needs_mask(self) -> bool:
        """Whether it would bring pruned weights back without the weight's mask."""
        return False

    def effective(self, weight: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return the value, in the parameter's dtype, zero where pruned."""
        return keep(mask, self.value.astype(weight.dtype))

    def merged(self, weight: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return what `effective` does."""
        return self.effective(weight, mask)


def full(params: Tree, *, where: Where) -> dict[str, Full]:
    """Make adapters that train whole parameters, to be trained together with low-rank ones.

    They are float32 copies, so that small updates are not lost in a model of 16 bits.

    Args:
      params: parameters in any container.
      where: which ones, such as `is_bias_or_norm`; as in `jaxprune.make_masks`. Of a weight with a
        mask the kept entries are trained.

    Returns:
      ``{path: Full}``, for `effective_params` and `merge`.

    Raises:
      ValueError: nothing is selected.
      TypeError: a selected leaf is not floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import recovery
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2, jnp.bfloat16)}
      >>> trained = recovery.full(params, where=recovery.is_bias)
      >>> list(trained), trained["bias"].value.dtype
      (['bias'], dtype('float32'))

    Reference:
      Zimmer et al., PERP: Rethinking the prune-retrain paradigm in the era of LLMs,
      arXiv:2312.15230.
    """
    chosen = select(params, where)
    return {
        path: Full(jnp.array(leaf, dtype=wide_dtype(leaf.dtype))) for path, leaf in chosen.items()
    }


def _is_float(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)
