"""How well a language model predicts a text."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.types import Tree


class Perplexity(NamedTuple):
    """What ``perplexity`` measured.

    Attributes:
      value: the perplexity over all predictions.
      per_window: float64 (windows,), the perplexity of each window.
      predictions: number of predicted tokens.
    """

    value: float
    per_window: np.ndarray
    predictions: int


def perplexity(
    fn: Callable[[Tree, jax.Array], jax.Array],
    params: Tree,
    tokens: Any,
    *,
    context: int | None = None,
    batch_size: int = 1,
    progress: Callable[[int, int, float], None] | None = None,
) -> Perplexity:
    """Measure ``exp(mean of −log p(next token))`` over windows of a text.

    Windows are independent: each begins without a past, and of its L tokens the last L − 1 are
    predicted. A text is cut into consecutive windows of ``context`` tokens; what is left at its end
    is not used. Figures are only comparable at the same windows. Logits are taken as float32 and
    sums are float64.

    Args:
      fn: ``(params, tokens) -> logits``, integers (batch, length) to (batch, length, vocabulary).
        It is compiled, once per function and shape.
      params: its parameters.
      tokens: integers, a text (n,) or windows (windows, length).
      context: length of a window; only for a text.
      batch_size: windows evaluated together. The logits take ``4 · batch_size · length ·
        vocabulary`` bytes, and as much again.
      progress: called after each batch with the windows done, their number, and the perplexity
        so far.

    Returns:
      The perplexity, in all and by window. It is infinite or NaN if the model's logits are.

    Raises:
      ValueError: if the text is shorter than a window, a token is outside the vocabulary, or
        ``context`` does not fit the shape of the tokens.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import models
      >>> def likely(params, tokens):  # the next token is one more, with probability 1/2
      ...     one_more = jnp.arange(4) == (tokens[..., None] + 1) % 4
      ...     return jnp.where(one_more, params["gain"], 0.0)
      >>> text = jnp.arange(12) % 4
      >>> result = models.perplexity(likely, {"gain": jnp.log(3.0)}, text, context=6)
      >>> round(result.value, 4), result.predictions
      (2.0, 10)
    """
    windows = _windows(np.asarray(tokens), context)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it has to be at least 1.")
    _check_vocabulary(fn, params, windows[:1], windows)
    losses: list[np.ndarray] = []
    for at in range(0, len(windows), batch_size):
        batch = windows[at : at + batch_size]
        losses.append(np.asarray(_losses(fn, params, batch), np.float64))
        if progress is not None:
            done = np.concatenate(losses)
            progress(len(done), len(windows), _exp(float(done.mean())))
    found = np.concatenate(losses)
    per_window = np.array([_exp(float(loss)) for loss in found])
    return Perplexity(_exp(float(found.mean())), per_window, windows[:, 1:].size)


@functools.partial(jax.jit, static_argnums=0)
def _losses(
    fn: Callable[[Tree, jax.Array], jax.Array], params: Tree, windows: jax.Array
) -> jax.Array:
    """Return the mean loss of each window, float32 (windows,)."""
    logits = fn(params, windows)[:, :-1].astype(jnp.float32)
    right = jnp.take_along_axis(logits, windows[:, 1:, None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - right, axis=-1)


def _windows(tokens: np.ndarray, context: int | None) -> np.ndarray:
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens have dtype {tokens.dtype}; they have to be integers.")
    if tokens.ndim == 2 and context is None:
        windows = tokens
    elif tokens.ndim == 1 and context is not None:
        if context < 2 or len(tokens) < context:
            raise ValueError(
                f"context is {context} and the text has {len(tokens)} tokens; a window has at "
                "least 2 tokens, and the text at least one window."
            )
        count = len(tokens) // context
        windows = tokens[: count * context].reshape(count, context)
    else:
        raise ValueError(
            f"tokens have shape {tokens.shape} and context is {context}; pass a text (n,) with a "
            "context, or windows (windows, length) without."
        )
    if windows.shape[0] < 1 or windows.shape[1] < 2:
        raise ValueError(
            f"tokens have shape {tokens.shape}; at least one window of 2 tokens is needed."
        )
    return windows.astype(np.int32)


def _check_vocabulary(
    fn: Callable[[Tree, jax.Array], jax.Array],
    params: Tree,
    first: np.ndarray,
    windows: np.ndarray,
) -> None:
    size = jax.eval_shape(fn, params, first).shape[-1]
    bad = np.argwhere((windows < 0) | (windows >= size))
    if len(bad):
        window, place = (int(i) for i in bad[0])
        raise ValueError(
            f"token {windows[window, place]} at place {place} of window {window} is outside the "
            f"vocabulary of {size}; tokenise the text with the model's own tokenizer."
        )


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
