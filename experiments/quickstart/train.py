"""Train a small CNN on real images, dense and sparse, and compare. Read it from top to bottom.

    python -m experiments.quickstart                              # some minutes on two cores
    python -m experiments.quickstart --resume                     # after an interruption
    python -m experiments.quickstart --seeds 3 --out runs/three   # mean and standard deviation

All of sparse training is in `optimizers`: the dense optimizer, wrapped in one line. The model, the
loss and the training step do not know of it.
"""

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import jaxprune
from experiments.data import Dataset, load
from experiments.quickstart import report, timing
from experiments.quickstart.settings import Settings, parse, prepare_folder
from jaxprune import checkpoint
from jaxprune.allocation import erdos_renyi_kernel as erk

TWO_OF_FOUR = jaxprune.NM(2, 4)


def optimizers(
    total_steps: int, learning_rate: float
) -> dict[str, optax.GradientTransformationExtraArgs]:
    """Return the optimizer of each run. A sparse one is the dense one, wrapped in one line."""
    rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, total_steps // 20, total_steps)
    # Decay shrinks what the loss does not hold up, so that magnitude tells what a weight is worth
    # and not what it began as.
    dense = optax.adamw(rate, weight_decay=0.3)
    begin, end, every = pruning_window(total_steps)

    def rise(final: float) -> jaxprune.schedules.Polynomial:
        return jaxprune.schedules.cubic(0.0, final, begin=begin, end=end)

    return {
        "dense": dense,
        # ------------------------- the one line ---------------------------------------------
        "90%": jaxprune.gradual(dense, rise(0.90), every=every, allocation=erk),
        "98%": jaxprune.gradual(dense, rise(0.98), every=every, allocation=erk),
        "2:4": jaxprune.gradual(dense, rise(0.50), every=every, pattern=TWO_OF_FOUR),
        # ------------------------------------------------------------------------------------
    }


def pruning_window(total_steps: int) -> tuple[int, int, int]:
    """Return when pruning begins and ends, and the steps between two changes of the masks."""
    return total_steps // 5, total_steps * 7 // 10, max(1, total_steps // 100)


class CNN(nn.Module):
    """Two convolutions and two dense layers; about 410,000 weights for images of 28 x 28."""

    num_classes: int
    mean: float  # of the training pixels
    std: float

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return logits [N, classes] of images [N, H, W, C] uint8."""
        x = (images.astype(jnp.float32) - np.float32(self.mean)) / np.float32(self.std)
        x = space_to_depth(x)
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=(2, 2))(x))
        x = nn.relu(nn.Dense(256)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(x)


def space_to_depth(x: jax.Array) -> jax.Array:
    """Turn 2 x 2 pixels into channels: a quarter of the work, and four inputs for 2:4 to halve."""
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(n, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, height // 2, width // 2, 4 * channels)


class Data(NamedTuple):
    """The whole dataset, on the device."""

    train_images: jax.Array  # [N, H, W, C] uint8
    train_labels: jax.Array  # [N] int32
    test_images: jax.Array  # [M, H, W, C] uint8
    test_labels: jax.Array  # [M] int32


class History(NamedTuple):
    """What happened, for the report; saved with the checkpoint."""

    loss: np.ndarray  # [epochs, chunks] float32, mean over the steps of a chunk
    sparsity: np.ndarray  # [epochs, chunks] float32, share of kernel weights that are zero
    accuracy: np.ndarray  # [epochs] float32, on the test images
    seconds: np.ndarray  # [epochs] float32


def make_step(model: CNN, tx: optax.GradientTransformation) -> Any:
    """Return the jitted training step. Nothing in it is about sparsity."""

    @jax.jit
    def step(params: Any, opt_state: Any, data: Data, batch: jax.Array) -> Any:
        def loss_of(params: Any) -> jax.Array:
            logits: Any = model.apply({"params": params}, data.train_images[batch])
            labels = data.train_labels[batch]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)  # pruned weights are now exactly 0.0
        return params, opt_state, loss

    return step


def make_accuracy(model: CNN, data: Data) -> Any:
    """Return a function that gives the share of test images that parameters get right."""

    @jax.jit
    def correct(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, images)
        return jnp.sum(logits.argmax(-1) == labels, dtype=jnp.int32)

    def accuracy(params: Any) -> float:
        images, labels = data.test_images, data.test_labels
        starts = range(0, len(labels), 1000)
        hits = [correct(params, images[i : i + 1000], labels[i : i + 1000]) for i in starts]
        return sum(map(int, hits)) / len(labels)

    return accuracy


@jax.jit
def share_of_zeros(params: Any) -> jax.Array:
    """Return the share of kernel weights that are exactly zero."""
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    zeros = [jnp.sum(leaf == 0, dtype=jnp.int32) for leaf in kernels]
    return jnp.sum(jnp.stack(zeros)) / np.float32(sum(leaf.size for leaf in kernels))


def shuffled(size: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the batches [steps, batch] of an epoch: a function of seed and epoch alone.

    The position in the data therefore needs no place in a checkpoint.
    """
    order = np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)
    return order[: size // batch_size * batch_size].reshape(-1, batch_size)


class Trainer:
    """What the runs of one seed share: model, data, first parameters, order of the batches."""

    def __init__(self, settings: Settings, dataset: Dataset, data: Data, seed: int) -> None:
        pixels = dataset.train_images
        if settings.batch_size > len(pixels):
            raise ValueError(
                f"--batch-size {settings.batch_size} is more than the {len(pixels)} training "
                f"images of {dataset.name}: give {len(pixels)} or less."
            )
        self.settings, self.data, self.seed = settings, data, seed
        self.model = CNN(dataset.num_classes, float(pixels.mean()), float(pixels.std()))
        self.first = jax.jit(self.model.init)(jax.random.key(seed), data.train_images[:1])["params"]
        self.accuracy = make_accuracy(self.model, data)
        self.steps_per_epoch = len(pixels) // settings.batch_size
        self.chunks = min(8, self.steps_per_epoch)  # of an epoch: as often is progress noted
        self.optimizers = optimizers(self.total_steps, settings.learning_rate)
        self.steps = {name: make_step(self.model, tx) for name, tx in self.optimizers.items()}

    @property
    def total_steps(self) -> int:
        """Return the number of steps of a run."""
        return self.settings.epochs * self.steps_per_epoch

    def folder(self, name: str) -> Path:
        """Return where the checkpoints of a run are."""
        return self.settings.out / f"seed{self.seed}" / name.replace(":", "of").rstrip("%")

    def start(self, tx: optax.GradientTransformation) -> dict[str, Any]:
        """Return the state before the first step."""
        epochs, of_chunks = self.settings.epochs, (self.settings.epochs, self.chunks)
        nothing = [np.zeros(shape, np.float32) for shape in (of_chunks, of_chunks, epochs, epochs)]
        return {
            "params": self.first,
            "opt_state": tx.init(self.first),
            "history": History(*nothing),
        }

    def train(self, name: str, bar: Progress) -> dict[str, Any]:
        """Train one run, from its newest checkpoint if it has one; save after each epoch."""
        state, done = self.start(self.optimizers[name]), 0
        folder = self.folder(name)
        if checkpoint.latest_step(folder) is not None:
            done, state = checkpoint.restore(folder, state)
        row = bar.add_task(
            name, total=self.settings.epochs * self.chunks, completed=done * self.chunks, note=""
        )
        for epoch in range(done, self.settings.epochs):
            state = self.epoch(
                epoch, self.steps[name], state, lambda note: bar.update(row, advance=1, note=note)
            )
            checkpoint.save(folder, epoch + 1, state)
            if not bar.console.is_terminal:  # where no bar is drawn
                bar.console.print(
                    f"{name}: epoch {epoch + 1} of {self.settings.epochs}, "
                    f"test accuracy {state['history'].accuracy[epoch]:.2%}"
                )
        bar.update(row, note=f"test accuracy {state['history'].accuracy[-1]:.2%}")
        return state

    def epoch(self, epoch: int, step: Any, state: dict[str, Any], told: Any) -> dict[str, Any]:
        """Run one epoch: a host loop over jitted steps, all data on the device.

        Not a `lax.scan`: inside a loop, XLA's CPU backend takes seven times as long for a
        convolution as outside of one.
        """
        began = time.perf_counter()
        params, opt_state = state["params"], state["opt_state"]
        history = History(*(np.array(array) for array in state["history"]))
        batches = shuffled(len(self.data.train_labels), self.settings.batch_size, self.seed, epoch)
        for index, chunk in enumerate(np.array_split(batches, self.chunks)):
            losses = []
            for batch in chunk:
                params, opt_state, loss = step(params, opt_state, self.data, batch)
                losses.append(loss)
            history.loss[epoch, index] = np.mean(jax.device_get(losses))
            history.sparsity[epoch, index] = share_of_zeros(params)
            told(f"epoch {epoch + 1} loss {history.loss[epoch, index]:.3f}")
        history.accuracy[epoch] = self.accuracy(params)
        history.seconds[epoch] = time.perf_counter() - began
        return {"params": params, "opt_state": opt_state, "history": history}


def run_seed(trainer: Trainer, bar: Progress) -> tuple[list[report.Outcome], dict[str, Any]]:
    """Train all runs of one seed; return what they came to, and their last states."""
    states = {name: trainer.train(name, bar) for name in trainer.optimizers}
    for name, state in states.items():
        if name == "dense":
            state["masks"] = jaxprune.make_masks(state["params"], 0.0)
        else:
            state["masks"] = jaxprune.get_masks(state["opt_state"])
            jaxprune.check(state["params"], state["opt_state"]).raise_for_problems()

    # The reference: the trained dense model, cut to 98% at once and not trained again.
    cut_at_once = jax.jit(functools.partial(jaxprune.prune, sparsity=0.98, allocation=erk))
    cut, masks = cut_at_once(states["dense"]["params"])
    pruned = {"98% at once": {"params": cut, "masks": masks}}
    outcomes = [
        report.outcome(
            name,
            trainer.seed,
            state,
            accuracy=trainer.accuracy(state["params"]),
            pattern=TWO_OF_FOUR if name == "2:4" else None,
        )
        for name, state in {**states, **pruned}.items()
    ]
    return outcomes, states


def step_times(trainer: Trainer, states: Mapping[str, Any]) -> dict[str, timing.StepTime]:
    """Time the steps of all runs side by side, amid pruning: changes of masks count."""
    begin, _, every = pruning_window(trainer.total_steps)
    batch = shuffled(len(trainer.data.train_labels), trainer.settings.batch_size, trainer.seed, 0)[
        0
    ]

    def at(number: int, name: str) -> Any:
        params, opt_state = states[name]["params"], states[name]["opt_state"]
        if isinstance(opt_state, jaxprune.transforms.State):
            opt_state = opt_state._replace(step=jnp.asarray(number, jnp.int32))
        step = trainer.steps[name]
        return lambda: jax.block_until_ready(step(params, opt_state, trainer.data, batch))

    usual, rare = (
        timing.side_by_side({name: at(number, name) for name in states}, rounds=rounds)
        for number, rounds in ((begin + 1, 60), (begin + every, 20))
    )
    return timing.one_in(every, rare, usual)


def main(arguments: list[str] | None = None) -> None:
    """Load, train, compare, report."""
    settings, console = parse(arguments, __doc__), Console()
    began = time.perf_counter()
    dataset = load(settings.dataset)
    report.print_source(console, settings.dataset, dataset, time.perf_counter() - began)
    prepare_folder(settings, dataset.sha256, console)
    arrays = (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels)
    data = Data(*map(jnp.asarray, arrays))

    outcomes, times = [], {}
    columns = [TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn()]
    notes = [TimeElapsedColumn(), TextColumn("{task.fields[note]}")]
    with Progress(*columns, *notes, console=console) as bar:
        for seed in range(settings.seed, settings.seed + settings.seeds):
            trainer = Trainer(settings, dataset, data, seed)
            of_seed, states = run_seed(trainer, bar)
            outcomes += of_seed
            times = times or step_times(trainer, states)
    seconds = time.perf_counter() - began
    report.publish(console, settings, dataset, outcomes, times, seconds)
