"""Flax NNX: a model that holds, for a while, the weights of the forward pass."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from jaxprune._core import paths
from jaxprune._core.packing import is_packed
from jaxprune.transforms._state import find_states
from jaxprune.transforms.export import forward_params


@contextlib.contextmanager
def forward(model: Any, optimizer: Any) -> Iterator[Any]:
    """Let a model hold the weights that the forward pass sees, inside a ``with`` block.

    `jaxprune.forward_params` in place. For transforms that store dense weights and train through a
    mask, such as `jaxprune.ste`; the others see what they store. Gradients pass straight through:
    the block may stand around ``nnx.grad`` or inside the function that it differentiates, and
    inside ``nnx.jit``. At its end, or at an exception, the model holds its stored weights again;
    other variables, batch statistics say, keep their changes. Call ``optimizer.update`` after it.

    Args:
      model: an ``nnx.Module``.
      optimizer: its ``nnx.Optimizer``, around a jaxprune transform.

    Returns:
      A context manager that gives the model.

    Raises:
      ValueError: no jaxprune transform, packed masks, or an ``optimizer.update`` inside the block.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> from flax import nnx
      >>> model = nnx.Linear(4, 1, use_bias=False, rngs=nnx.Rngs(0))
      >>> model.kernel[...] = jnp.array([[4.0], [3.0], [2.0], [1.0]])
      >>> tx = jaxprune.ste(optax.sgd(0.5), jaxprune.NM(2, 4))
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> with jaxprune.nnx.forward(model, optimizer):
      ...     loss, grads = nnx.value_and_grad(lambda model: model(jnp.ones(4)).sum())(model)
      >>> _ = optimizer.update(model, grads)
      >>> float(loss), model.kernel[...].ravel().tolist()
      (7.0, [3.5, 2.5, 1.5, 0.5])
    """
    from flax import nnx  # seconds of import that only users of NNX should pay

    opt_state = nnx.as_pure(optimizer.opt_state)
    _check_masks(opt_state)
    kept = nnx.as_pure(nnx.state(model, optimizer.wrt, graph=optimizer.graph))
    calls = optimizer.step.get_value()
    nnx.update(model, forward_params(kept, opt_state))
    try:
        yield model
    finally:
        nnx.update(model, kept)
    if optimizer.step.get_value() is not calls:
        raise ValueError(
            "optimizer.update was called inside jaxprune.nnx.forward, where the model holds the "
            "weights of the forward pass: its update of the stored weights is lost. Call it after "
            "the with block."
        )


def _check_masks(opt_state: Any) -> None:
    for state in find_states(opt_state):
        held = paths.flatten(jax.tree.map(lambda mask: 0, state.masks, is_leaf=is_packed))
        lost = [path for path in held if path.endswith("/bits")]
        if lost:
            raise ValueError(
                f"the packed masks of {paths.listed(lost)} have lost their sizes: flax.nnx "
                "rebuilds an optimizer's state from its arrays alone. Pass packed=False with "
                "nnx.Optimizer."
            )
