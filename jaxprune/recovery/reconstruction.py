"""Layer-wise reconstruction: train each block to give what the dense block gives (PERP)."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune._core import paths
from jaxprune._core.prunable import Where
from jaxprune.graph import Graph
from jaxprune.graph.segments import Segment
from jaxprune.masks import check_masks, mask_leaves
from jaxprune.posttraining._blocks import Blocks
from jaxprune.recovery.adapters import Adapter, effective_params, merge
from jaxprune.types import Tree


class BlockToTrain(NamedTuple):
    """One block, as a function that makes its adapters sees it.

    Attributes:
      params: the block's parameters by path; of stacked layers one layer.
      masks: those of its weights that have one, by path.
      graph: of the block, for weights that are no matrices.
      key: of its own.
      number: of the block, from 0.
    """

    params: dict[str, jax.Array]
    masks: dict[str, jax.Array]
    graph: Graph
    key: jax.Array
    number: int


class ReconstructedBlock(NamedTuple):
    """What became of one block.

    Attributes:
      number: of the block, from 0.
      of: how many there are.
      before: mean squared error of its outputs before training, over all batches.
      after: and after.
      seconds: time for it.
    """

    number: int
    of: int
    before: float
    after: float
    seconds: float


class Reconstruction(NamedTuple):
    """A reconstructed model.

    Attributes:
      params: like the model's; pruned weights are exactly zero.
      blocks: what became of each block.
    """

    params: Tree
    blocks: tuple[ReconstructedBlock, ...]


def reconstruct_blocks(
    graph: Graph,
    params: Tree,
    masks: Tree,
    batches: Iterable[Any],
    *,
    dense: Tree,
    adapters: Callable[[BlockToTrain], Mapping[str, Adapter]],
    optimizer: optax.GradientTransformation,
    steps: int,
    key: jax.Array,
    where: Where | None = None,
    done: Callable[[ReconstructedBlock], None] = lambda block: None,
) -> Reconstruction:
    """Train block after block to give what the dense block gives for the same inputs.

    The inputs of a block come from the blocks before it, pruned and reconstructed. Each block's
    adapters are trained on ``mean((outputs − dense outputs)²)``, batch after batch, and merged;
    then the batches go on through it. Nothing is differentiated through more than one block, and
    what is in memory is the model twice, the live activations and one block's outputs.

    Args:
      graph: of the model, `jaxprune.trace`.
      params: the pruned parameters.
      masks: masks in any container, True = kept.
      batches: each a tuple of the model's inputs, or the only input, as they were traced.
      dense: the parameters before pruning.
      adapters: ``block -> {path: adapter}``: what is trained of a block, such as
        ``lambda block: recovery.mask_lora(block.params, block.masks, graph=block.graph,
        key=block.key)``, joined with ``recovery.full(block.params, where=...)`` by ``|``.
      optimizer: any optax optimizer; it starts anew for each block.
      steps: for each block; batches are taken in turn.
      key: from `jax.random.key`.
      where: blocks that have a weight that is so selected; None for the repeated blocks.
      done: is told of every block as soon as it is trained.

    Returns:
      The parameters, and the error of each block before and after.

    Raises:
      ValueError: steps below 1, no batch, a batch of other shapes, no block to train, a block
        without adapters, or parameters and masks that do not match.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune
      >>> import optax
      >>> from jaxprune import recovery
      >>> def model(params, x):
      ...     for layer in params:
      ...         x = x + jnp.tanh(x @ layer["kernel"])
      ...     return x
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> dense = [{"kernel": jax.random.normal(key, (8, 8))} for key in keys]
      >>> pruned, masks = jaxprune.prune(dense, 0.5)
      >>> batches = [jax.random.normal(jax.random.key(1), (4, 8))]
      >>> graph = jaxprune.trace(model, dense, batches[0])
      >>> found = recovery.reconstruct_blocks(
      ...     graph, pruned, masks, batches, dense=dense, optimizer=optax.adam(0.05), steps=20,
      ...     adapters=lambda block: recovery.mask_lora(block.params, block.masks, key=block.key),
      ...     key=jax.random.key(2))
      >>> [bool(block.after < 0.5 * block.before) for block in found.blocks]
      [True, True, True]
      >>> [int((layer["kernel"] == 0).sum()) for layer in found.params]
      [32, 32, 32]

    Reference:
      Zimmer et al., PERP: Rethinking the prune-retrain paradigm in the era of LLMs,
      arXiv:2312.15230.
    """
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps!r}. It is those of each block.")
    wanted, kept = paths.flatten(dense), mask_leaves(masks)
    check_masks(paths.flatten(params), kept)
    _check_alike(paths.flatten(params), wanted)
    # It asks for statistics, which are not gathered, so that it sends the batches on.
    model = Blocks(graph, params, batches, where=where, needs=("squares",))
    blocks: list[ReconstructedBlock] = []
    for index, segment in enumerate(model.segments):
        if segment in model.prunable:
            start, number = time.perf_counter(), len(blocks)
            block = _block(segment, model, kept, jax.random.fold_in(key, number), number)
            fixed = _Fixed.of(segment, block, model, wanted)
            trained = _checked(adapters(block), number)
            errors, trained = _train(segment, fixed, trained, optimizer, steps, number)
            _put(model, segment, block, merge(block.params, block.masks, trained))
            seconds = time.perf_counter() - start
            blocks.append(ReconstructedBlock(number, len(model.prunable), *errors, seconds))
            done(blocks[-1])
        model.forward(index)
    return Reconstruction(model.result()[0], tuple(blocks))


def _names(segment: Segment) -> dict[str, str]:
    """Return a path for each of the segment's own names; with the layer where that is needed."""
    places = segment.weights
    seen = [path for path, _ in places.values()]
    return {
        own: path if seen.count(path) == 1 else f"{layer}/{path}"
        for own, (path, layer) in places.items()
    }


def _block(
    segment: Segment, model: Blocks, kept: Mapping[str, jax.Array], key: jax.Array, number: int
) -> BlockToTrain:
    names, arrays = _names(segment), segment.params(model.leaves)
    masks = {
        names[own]: kept[path] if layer is None else kept[path][layer]
        for own, (path, layer) in segment.weights.items()
        if path in kept
    }
    params = {names[own]: array for own, array in arrays.items()}
    return BlockToTrain(params, masks, _graph(segment, names), key, number)


def _graph(segment: Segment, names: Mapping[str, str]) -> Graph:
    """Return the segment's graph, in which its parameters have their paths."""
    program = segment.program
    renamed = {
        "params": {names[own]: leaf for own, leaf in program.params.items()},
        "uses": tuple(dataclasses.replace(use, path=names[use.path]) for use in program.uses),
        "skipped": tuple(entry._replace(path=names[entry.path]) for entry in program.skipped),
    }
    return Graph(dataclasses.replace(program, **renamed))


class _Fixed(NamedTuple):
    """What a block's training only reads, under the block's own names: equal for like blocks."""

    own: Mapping[str, str]  # the block's own name of each path
    params: dict[str, jax.Array]
    masks: dict[str, jax.Array]
    inputs: list[list[jax.Array]]  # of each batch
    targets: list[list[jax.Array]]

    @classmethod
    def of(
        cls, segment: Segment, block: BlockToTrain, model: Blocks, dense: Mapping[str, jax.Array]
    ) -> "_Fixed":
        own = {path: name for name, path in _names(segment).items()}
        inputs = [[values[v] for v in segment.reads] for values in model.live]
        wanted = segment.params(dense)
        return cls(
            own,
            {own[path]: array for path, array in block.params.items()},
            {own[path]: mask for path, mask in block.masks.items()},
            inputs,
            [segment(wanted, *arrays) for arrays in inputs],
        )


def _train(
    segment: Segment,
    fixed: _Fixed,
    adapters: Mapping[str, Adapter],
    optimizer: optax.GradientTransformation,
    steps: int,
    number: int,
) -> tuple[tuple[float, float], dict[str, Any]]:
    """Return the error before and after, and the adapters by path."""
    step, error = _programs(segment, optimizer)
    trained: Any = {fixed.own[path]: adapter for path, adapter in adapters.items()}
    data = list(zip(fixed.inputs, fixed.targets, strict=True))

    def mean(trained: Any) -> float:
        found = [error(trained, fixed.params, fixed.masks, *batch) for batch in data]
        return float(jnp.mean(jnp.stack(found)))

    before, state = mean(trained), optimizer.init(trained)
    for turn in range(steps):
        batch = data[turn % len(data)]
        trained, state = step(trained, state, fixed.params, fixed.masks, *batch)
    after = mean(trained)
    if not math.isfinite(after):
        raise ValueError(
            f"the error of block {number} is {after} after training, and was {before:.3g}. Give an "
            "optimizer with a lower learning rate, and look at the calibration data."
        )
    return (before, after), {path: trained[fixed.own[path]] for path in adapters}


def _programs(segment: Segment, optimizer: optax.GradientTransformation) -> Any:
    """Return ``step`` and ``error`` of a block, compiled once for all that do the same."""
    known, call = segment.body.kept, segment.body.call
    name = ("reconstruction", optimizer)
    if name in known:
        return known[name]

    def error(adapters: Any, params: Any, masks: Any, inputs: Any, targets: Any) -> jax.Array:
        return _mean_square(call(effective_params(params, masks, adapters), *inputs), targets)

    def step(adapters: Any, state: Any, *fixed: Any) -> Any:
        slope = jax.grad(error)(adapters, *fixed)
        updates, state = optimizer.update(slope, state, adapters)
        return optax.apply_updates(adapters, updates), state

    known[name] = jax.jit(step), jax.jit(error)
    return known[name]


def _mean_square(outputs: Sequence[jax.Array], targets: Sequence[jax.Array]) -> jax.Array:
    pairs = [
        (a.astype(jnp.float32), b.astype(jnp.float32))
        for a, b in zip(outputs, targets, strict=True)
        if jnp.issubdtype(b.dtype, jnp.floating)
    ]
    return sum((jnp.sum(jnp.square(a - b)) for a, b in pairs), start=jnp.float32(0.0)) / sum(
        b.size for _, b in pairs
    )


def _put(model: Blocks, segment: Segment, block: BlockToTrain, params: Tree) -> None:
    """Put a block's parameters into the model's."""
    for own, name in _names(segment).items():
        if params[name] is not block.params[name]:
            path, layer = segment.weights[own]
            whole = model.leaves[path]
            model.leaves[path] = (
                params[name] if layer is None else whole.at[layer].set(params[name])
            )


def _checked(adapters: Mapping[str, Adapter], number: int) -> Mapping[str, Adapter]:
    if not adapters:
        raise ValueError(
            f"adapters gave nothing to train for block {number}. Return {{path: adapter}}, as "
            "recovery.mask_lora and recovery.full do."
        )
    for path, adapter in adapters.items():
        if any(not jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(adapter)):
            raise ValueError(
                f"the adapter of {path!r} in block {number} is a {type(adapter).__name__}, whose "
                "indices have no gradient. Give recovery.mask_lora, scale_lora or full."
            )
    return adapters


def _check_alike(params: Mapping[str, Any], dense: Mapping[str, Any]) -> None:
    for path in dict.fromkeys([*params, *dense]):
        shapes = [getattr(tree.get(path), "shape", None) for tree in (params, dense)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"params and dense differ at {path!r}: shapes {shapes[0]} and {shapes[1]}. Pass "
                "the parameters of one model, after and before pruning."
            )
