"""Recovery of a pruned model at its masks: PERP, normalisations alone, sparse fine-tuning."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.llm_oneshot import text
from experiments.llm_oneshot.model import WEIGHTS, Model, dense, graph_of
from experiments.llm_oneshot.pruning import Pruned
from experiments.llm_oneshot.settings import Settings
from experiments.runner.api import Context
from experiments.runner.training import Program
from jaxprune import recovery

RETRAINING = 2  # number of the use of windows

Adapters = dict[str, Any]
Gradient = Callable[[Adapters, Any, Any, jax.Array], tuple[jax.Array, Any]]


class Recovered(NamedTuple):
    """A retrained model."""

    params: Any
    trained: int  # how many numbers
    losses: list[float]  # mean of each chunk


def recovered(settings: Settings, context: Context, seed: int, start: Pruned) -> Recovered:
    """Retrain the pruned model of a seed."""
    tx, chunk = context.once(
        f"trainer {settings.recovery} {settings.learning_rate}",
        lambda: _trainer(settings, dense(settings, context)),
    )
    adapters = _adapters(settings, context, seed, start)
    state = tx.init(adapters)
    windows, losses = _windows(settings, context, seed), []
    for number, some in enumerate(windows):
        adapters, state, loss = chunk(adapters, state, start.params, start.masks, some)
        losses.append(float(f"{float(loss):.5g}"))
        context.tell(number + 1, settings.chunks, f"seed {seed}, retrained, loss {losses[-1]:.3f}")
    merged = recovery.merge(start.params, start.masks, adapters)
    return Recovered(merged, recovery.count_trainable(adapters), losses)


def rate_of(settings: Settings) -> optax.Schedule:
    """Return PERP's schedule: up over a tenth of the steps, then down to 0."""
    up = max(settings.steps // 10, 1)
    rise = optax.linear_schedule(0.0, settings.learning_rate, up)
    fall = optax.linear_schedule(settings.learning_rate, 0.0, settings.steps - up)
    return optax.join_schedules([rise, fall], [up])


def _adapters(settings: Settings, context: Context, seed: int, start: Pruned) -> Adapters:
    key, graph = jax.random.key(seed), graph_of(settings, context)
    params, masks = start.params, start.masks
    if settings.recovery in ("sft-ag", "sft-ma"):
        chosen = {"masks": masks, "where": WEIGHTS, "graph": graph}
        return dict(recovery.sparse_deltas(params, settings.entries, key=key, **chosen))
    norms: Adapters = dict(recovery.full(params, where=recovery.is_norm))
    if settings.recovery == "norms":
        return norms
    low = {"rank": settings.rank, "alpha": settings.alpha, "graph": graph}
    return norms | recovery.mask_lora(params, masks, key=key, **low)


def _trainer(settings: Settings, model: Model) -> tuple[Any, Program]:
    """Return the optimizer, and a program of one chunk of steps."""
    sparse = settings.recovery in ("sft-ag", "sft-ma")
    tx, gradient = _optimizer(settings), _of_seen(model) if sparse else _of_adapters(model)

    def chunk(adapters: Adapters, state: Any, params: Any, masks: Any, windows: jax.Array) -> Any:
        def step(carry: Any, batch: jax.Array) -> Any:
            adapters, state = carry
            loss, slope = gradient(adapters, params, masks, batch)
            extra = {"masks": masks} if sparse else {}
            updates, state = tx.update(slope, state, adapters, **extra)
            return (optax.apply_updates(adapters, updates), state), loss

        (adapters, state), losses = jax.lax.scan(step, (adapters, state), windows)
        return adapters, state, jnp.mean(losses)

    return tx, Program(chunk)


def _optimizer(settings: Settings) -> optax.GradientTransformationExtraArgs:
    rate = rate_of(settings)
    if settings.recovery in ("sft-ag", "sft-ma"):
        make = recovery.sft_ag if settings.recovery == "sft-ag" else recovery.sft_ma
        return make(rate, steps=settings.steps, rate=recovery.linear_rate(0.2, settings.steps))
    return optax.with_extra_args_support(optax.adamw(rate, weight_decay=0.0))


def _of_adapters(model: Model) -> Gradient:
    """Return the loss and its gradient with regard to the adapters."""

    def gradient(adapters: Adapters, params: Any, masks: Any, batch: jax.Array) -> Any:
        def loss(adapters: Adapters) -> jax.Array:
            return model.loss(recovery.effective_params(params, masks, adapters), batch)

        return jax.value_and_grad(loss)(adapters)

    return gradient


def _of_seen(model: Model) -> Gradient:
    """Return the loss and its gradient with regard to what the forward pass sees."""

    def gradient(adapters: Adapters, params: Any, masks: Any, batch: jax.Array) -> Any:
        seen = recovery.effective_params(params, masks, adapters)
        return jax.value_and_grad(model.loss)(seen, batch)

    return gradient


def _windows(settings: Settings, context: Context, seed: int) -> np.ndarray:
    """Return [chunks, steps of a chunk, batch size, length] int32."""
    found = text.drawn(
        context,
        seed,
        count=settings.steps * settings.batch_size,
        length=settings.length,
        vocabulary=dense(settings, context).vocabulary,
        use=RETRAINING,
    )
    return found.reshape(settings.chunks, -1, settings.batch_size, settings.length)
