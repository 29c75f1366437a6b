"""A training step of a decoder with block-sparse feed-forward layers, against the same dense.

python -m experiments.benchmarks.sparse_training [--layers N] [--batch N] [--length N]
    [--density D] [--output FOLDER]

Layers of Llama 7B's shape in bfloat16; the feed-forward kernels keep a share of their blocks of
128 × 128, at random. `jaxprune.execute` runs the model on the packed weights, and `jax.grad`
differentiates that. A step is loss and gradients of all parameters, then `optax.adamw`: packed
weights have packed gradients and moments. Loss and gradients are compared with the masked dense
ones: those of blocks at the kept blocks.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from experiments.benchmarks import timing, tuned
from experiments.benchmarks.decoding import LLAMA_7B, TINY, dtype_here
from experiments.benchmarks.kernels import RUNS
from jaxprune import models
from jaxprune.execute import execute, pack
from jaxprune.formats import BlockSparse
from jaxprune.kernels import autotune

SHAPES = {"llama-7b": (LLAMA_7B, 128), "tiny": (TINY, 16)}
EFFORT = timing.Effort(least=0.05, total=6.0, rounds=(5, 15))


def main(argv: Sequence[str] | None = None) -> None:
    """Train a few steps with both, and keep their times."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="llama-7b")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--table", type=Path, default=RUNS / "tuning-training.json")
    parser.add_argument("--output", type=Path, default=timing.RESULTS)
    given = parser.parse_args(words)
    config, side = SHAPES[given.shape]
    config = dataclasses.replace(config, num_hidden_layers=given.layers)
    rows, dtype = given.batch * given.length, dtype_here()
    sides = (
        (config.hidden_size, config.intermediate_size),
        (config.intermediate_size, config.hidden_size),
    )
    cases = [
        autotune.case(f"{side}x{side}", rows, *shape, density=given.density, dtype=dtype)
        for shape in sides
    ]
    tuned.ensure(cases, given.table)
    row = measure(config, side, given.density, (given.batch, given.length))
    print(row, flush=True)
    content = {"model": dataclasses.asdict(config), "rows": [row]}
    timing.save("sparse_training", words, content, given.output)


def measure(
    config: models.LlamaConfig, side: int, density: float, shape: tuple[int, int]
) -> dict[str, Any]:
    """Time a step of both, and compare loss and gradients."""
    dense, packed = prepare(config, side, density)
    tokens = jax.random.randint(jax.random.key(1), (shape[0], shape[1] + 1), 0, config.vocab_size)
    apply = models.llama(config)
    functions = {"dense": apply, "sparse": execute(apply, packed)}
    trees = {"dense": dense, "sparse": packed}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(Step, functions[name], trees[name], tokens) for name in trees]
        steps = dict(zip(trees, (job.result() for job in jobs), strict=True))
    (loss, wanted), (other, got) = steps["dense"].gradients(), steps["sparse"].gradients()
    errors = distances(steps["dense"].joined(wanted), steps["sparse"].joined(got), packed)
    cases: dict[str, Callable[[], Any]] = {}
    for name, step in steps.items():
        cases |= {f"{name} gradients": step.gradients, f"{name} step": step}
    times = timing.medians(cases, EFFORT)
    return {
        "rows": shape[0] * shape[1], "length": shape[1], "block": side, "density": density,
        "seconds": times, "loss": [float(loss), float(other)], **errors,
        "bytes": {name: _bytes(tree) for name, tree in trees.items()},
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return header and cells of the page's table."""
    header = ("", "dense", "sparse", "speed-up", "gradient error", "of the worst")
    cells = []
    for row in rows:
        where = f"{row['rows']} tokens, blocks of {row['block']}, {1 - row['density']:.0%} zeros"
        known = (row["gradient error"], row.get("worst gradient error"))
        errors = ["-" if error is None else f"{error:.1e}" for error in known]
        for part in ("gradients", "step"):
            dense, sparse = (row["seconds"][f"{name} {part}"] for name in ("dense", "sparse"))
            ratio = f"{timing.ratio(dense, sparse)}x"
            times = timing.shown(dense), timing.shown(sparse)
            cells.append([f"{part}, {where}", *times, ratio, *errors])
    return header, cells


def prepare(config: models.LlamaConfig, side: int, density: float) -> tuple[Any, Any]:
    """Return random parameters with blocks pruned, and the same packed."""
    dtype = dtype_here()
    shapes = jax.eval_shape(functools.partial(models.init_llama, config), jax.random.key(0))
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    keys = jax.random.split(jax.random.key(0, impl="rbg"), len(leaves))
    dense, masks = [], {}
    rng = np.random.default_rng(0)
    for key, (path, leaf) in zip(keys, leaves, strict=True):
        name = "/".join(str(part.key) for part in path)
        weight = drawn(key, leaf.shape, dtype)
        if "/mlp/" in name:
            masks[name] = _blocks(leaf.shape, side, density, rng)
            weight = jnp.where(masks[name], weight, jnp.zeros_like(weight))
        dense.append(weight)
    params = jax.tree.unflatten(tree, dense)
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    graph = jaxprune.trace(models.llama(config), params, tokens)
    packed = pack(params, masks, graph=graph, format=jaxprune.Block((side, side)))
    left = {path for path in packed.dense if "/mlp/" in path}
    assert not left, f"these weights were not packed: {left}"
    return params, packed.params


@functools.partial(jax.jit, static_argnums=(1, 2))
def drawn(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Return random matrices, and ones for the norms."""
    if len(shape) == 1:
        return jnp.ones(shape, dtype)
    return (0.02 * jax.random.normal(key, shape)).astype(dtype)


def _blocks(
    shape: tuple[int, int], side: int, density: float, rng: np.random.Generator
) -> jax.Array:
    grid = (shape[0] // side, shape[1] // side)
    kept = np.zeros(grid, bool)
    count = round(density * kept.size)
    kept.reshape(-1)[rng.permutation(kept.size)[:count]] = True
    return jnp.repeat(jnp.repeat(jnp.asarray(kept), side, 0), side, 1)


class Step:
    """A compiled training step from fixed parameters; a call runs it once."""

    def __init__(self, apply: Any, params: Any, tokens: jax.Array):
        """Compile loss with gradients, and the optimizer.

        Args:
          apply: ``(params, tokens) -> logits``.
          params: floats are trained, indices are not.
          tokens: (batch, length + 1).
        """
        leaves, self.tree = jax.tree.flatten(params)
        self.trained = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
        self.floats = [leaf for leaf, yes in zip(leaves, self.trained, strict=True) if yes]
        self.indices = [leaf for leaf, yes in zip(leaves, self.trained, strict=True) if not yes]
        self.tokens = tokens
        optimizer = optax.adamw(1e-4)
        self.state = optimizer.init(self.floats)

        def loss(floats: Any, indices: Any, tokens: jax.Array) -> jax.Array:
            logits = apply(self.joined(floats, indices), tokens[:, :-1])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
            return losses.mean()

        def update(gradients: Any, state: Any, floats: Any) -> Any:
            updates, state = optimizer.update(gradients, state, floats)
            return optax.apply_updates(floats, updates), state

        self.differentiate: Any = _compiled(
            jax.value_and_grad(loss), self.floats, self.indices, tokens
        )
        self.update: Any = _compiled(update, self.floats, self.state, self.floats)

    def joined(self, floats: Any, indices: Any = None) -> Any:
        """Return a tree of floats and indices."""
        first, second = iter(floats), iter(self.indices if indices is None else indices)
        return jax.tree.unflatten(
            self.tree, [next(first if yes else second) for yes in self.trained]
        )

    def gradients(self) -> Any:
        """Return the loss and the gradients of the floats."""
        return self.differentiate(self.floats, self.indices, self.tokens)

    def __call__(self) -> Any:
        """Return the parameters and the optimizer's state after a step."""
        _, gradients = self.gradients()
        return self.update(gradients, self.state, self.floats)


def _compiled(function: Any, *args: Any) -> Any:
    return jax.jit(function).lower(*args).compile()


def distances(want: Any, got: Any, packed: Any) -> dict[str, float]:
    """Return how far gradients are apart, relative and in the norm; at kept blocks where packed.

    Args:
      want: gradients of the dense parameters.
      got: of the packed ones.
      packed: the packed parameters.

    Returns:
      Of all parameters together, and of the worst.
    """
    is_block = lambda node: isinstance(node, BlockSparse)  # noqa: E731
    pairs = [
        [
            float(part)
            for part in _apart(a, b.data if is_block(b) else b, w if is_block(w) else None)
        ]
        for a, b, w in zip(
            jax.tree.leaves(want),
            jax.tree.leaves(got, is_leaf=is_block),
            jax.tree.leaves(packed, is_leaf=is_block),
            strict=True,
        )
    ]
    norms, apart = np.array(pairs).T
    worst = np.where(norms > 0, apart / np.where(norms > 0, norms, 1.0), apart).max()
    return {
        "gradient error": float((apart.sum() / norms.sum()) ** 0.5),
        "worst gradient error": float(worst**0.5),
    }


@jax.jit
def _apart(want: jax.Array, got: jax.Array, w: BlockSparse | None) -> tuple[jax.Array, jax.Array]:
    want, got = want.astype(jnp.float32), got.astype(jnp.float32)
    if w is not None:
        (high, wide), (height, width) = w.grid, w.block
        want = jnp.swapaxes(want.reshape(high, height, wide, width), 1, 2)[w.rows, w.columns]
    return jnp.sum(want * want), jnp.sum((want - got) ** 2)


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    main()
