"""Train all seeds of a cell in one program: vmap over seeds, scan over the steps of a chunk."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from experiments.runner.api import Context

Params = Any
Data = Any


class Task(NamedTuple):
    """What is trained, in pure functions."""

    init: Callable[[jax.Array], Params]  # key -> parameters
    loss: Callable[[Params, Data, jax.Array], jax.Array]  # (parameters, data, indices [B]) -> ()
    evaluate: Callable[[Params, Data], dict[str, jax.Array]]  # -> () each


class Length(NamedTuple):
    """How long is trained, and on how many examples."""

    steps_per_chunk: int
    chunks: int  # as often is evaluated
    batch_size: int
    examples: int

    @property
    def steps(self) -> int:
        """Return the number of steps."""
        return self.steps_per_chunk * self.chunks


class Trained(NamedTuple):
    """Where training ended."""

    params: Params  # leaves [seeds, ...]
    opt_state: Any  # leaves [seeds, ...]
    history: dict[str, list[list[float]]]  # [seeds][chunks]

    def last(self, name: str) -> list[float]:
        """Return what was measured in the end, for each seed."""
        return [row[-1] for row in self.history[name]]


class Program:
    """A function for arguments of one shape: threads that call it together compile it once."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = jax.jit(function)
        self._compiled: Any = None
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        """Call the compiled function."""
        with self._lock:
            if self._compiled is None:
                self._compiled = self._function.lower(*arguments).compile()
        return self._compiled(*arguments)


class Trainer:
    """A task and an optimizer as two programs, compiled once for all cells that share it."""

    def __init__(self, task: Task, tx: optax.GradientTransformation) -> None:
        self.task, self.tx = task, optax.with_extra_args_support(tx)
        self.start = Program(jax.vmap(self._start))
        self.chunk = Program(jax.vmap(self._one_chunk, in_axes=(0, 0, None, 0)))

    def _start(self, key: jax.Array, masks: Any) -> tuple[Params, Any]:
        params = self.task.init(key)
        opt_state: Any = self.tx.init(params)
        if masks is None:
            return params, opt_state
        # The transform's own masks are unused: the compiler leaves out what draws them.
        return jaxprune.apply_masks(params, masks), opt_state._replace(masks=masks)

    def _one_chunk(self, params: Params, opt_state: Any, data: Data, batches: jax.Array) -> Any:
        def step(carry: tuple[Params, Any], batch: jax.Array) -> Any:
            params, opt_state = carry
            loss, grads = self._differentiated(params, opt_state, data, batch)
            updates, opt_state = self.tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), batches)
        exported = jaxprune.final_params(params, opt_state) if is_sparse(opt_state) else params
        measured = {"train_loss": jnp.mean(losses), **self.task.evaluate(exported, data)}
        return params, opt_state, measured

    def _differentiated(self, params: Params, opt_state: Any, *args: Any) -> tuple[Any, Params]:
        if is_sparse(opt_state):
            return jaxprune.value_and_grad(self.task.loss)(params, opt_state, *args)
        return jax.value_and_grad(self.task.loss)(params, *args)


def is_sparse(opt_state: Any) -> bool:
    """Tell whether a state holds that of a jaxprune transform."""

    def is_state(node: Any) -> bool:
        return isinstance(node, jaxprune.transforms.State)

    return any(map(is_state, jax.tree.leaves(opt_state, is_leaf=is_state)))


def train(
    context: Context, trainer: Trainer, data: Data, length: Length, first_masks: Any = None
) -> Trained:
    """Train from the seeds of the context.

    Args:
      context: gives the seeds, and is told of progress.
      trainer: the task and its optimizer.
      data: passed on to the task, on the device.
      length: how long.
      first_masks: masks [seeds, ...] that the transform begins with, in place of its own.

    Returns:
      Parameters and state of all seeds, and what was measured after each chunk.
    """
    keys = jnp.stack([jax.random.key(seed) for seed in context.seeds])
    params, opt_state = trainer.start(keys, first_masks)
    orders = [_order(length, seed) for seed in context.seeds]
    measured = []
    for index in range(length.chunks):
        at = slice(index * length.steps_per_chunk, (index + 1) * length.steps_per_chunk)
        batches = jnp.asarray(np.stack([order[at] for order in orders]))
        params, opt_state, found = trainer.chunk(params, opt_state, data, batches)
        measured.append(jax.device_get(found))
        context.tell(index + 1, length.chunks, _note(measured[-1]))
    history = {name: _per_seed([row[name] for row in measured]) for name in measured[0]}
    return Trained(params, opt_state, history)


def checked(trained: Trained) -> Trained:
    """Return what was trained, if sparse training went well in every seed.

    Raises:
      ValueError: `jaxprune.check` found a problem.
    """
    seeds = jax.tree.leaves(trained.params)[0].shape[0]
    for index in range(seeds):
        one = jax.tree.map(lambda leaf: leaf[index], (trained.params, trained.opt_state))
        jaxprune.check(*one).raise_for_problems()
    return trained


def live_weights(masks: Any) -> dict[str, list[int]]:
    """Return the number of kept weights of each layer, by path, for each seed."""
    found = {}
    for path, mask in jax.tree_util.tree_leaves_with_path(masks):
        counts = np.asarray(mask).reshape(mask.shape[0], -1).sum(axis=1)
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = counts.tolist()
    return found


def sparsity_of(masks: Any) -> list[float]:
    """Return the share of pruned weights for each seed."""
    layers = jax.tree.leaves(masks)
    size = sum(mask[0].size for mask in layers)
    kept = np.sum(list(live_weights(masks).values()), axis=0)
    return [float(f"{1 - count / size:.6g}") for count in kept]


def _order(length: Length, seed: int) -> np.ndarray:
    """Return the batches [steps, batch_size] int32: all examples in turn, shuffled each time."""
    needed = length.steps * length.batch_size
    per_pass = length.examples // length.batch_size * length.batch_size
    if not per_pass:
        raise ValueError(f"{length.batch_size=} is more than the {length.examples} examples.")
    rng = np.random.default_rng((seed, 1))
    passes = [rng.permutation(length.examples)[:per_pass] for _ in range(-(-needed // per_pass))]
    return np.concatenate(passes)[:needed].reshape(-1, length.batch_size).astype(np.int32)


def _per_seed(rows: list[np.ndarray]) -> list[list[float]]:
    return [[float(f"{value:.5g}") for value in column] for column in np.stack(rows, axis=1)]


def _note(found: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {np.mean(value):.4g}" for name, value in found.items())
