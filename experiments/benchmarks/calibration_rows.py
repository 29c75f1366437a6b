"""The measurements of the calibration benchmark: one block by phases, and a whole model."""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import calibration_jax as ours
from experiments.benchmarks import timing
from jaxprune.models import LlamaConfig
from jaxprune.patterns import NM
from jaxprune.types import Tree

Row = dict[str, Any]
Save = Callable[[Row], None]


def twin() -> Any:
    """Return the torch side; torch is imported nowhere else."""
    from experiments.benchmarks import calibration_torch

    return calibration_torch


def samples(
    cases: Mapping[str, timing.Run], seconds: float, most: int = 5
) -> dict[str, list[float]]:
    """Time cases in turns, at least once each, until the time is up."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    start = time.perf_counter()
    for _ in range(most):
        for name, run in cases.items():
            found[name].append(timing.seconds(run))
        if time.perf_counter() - start > seconds:
            break
    return found


def medians(cases: Mapping[str, timing.Run], seconds: float) -> Row:
    """Return the median of each case, and how many samples each has."""
    found = samples(cases, seconds)
    rounds = len(next(iter(found.values())))
    return {name: statistics.median(times) for name, times in found.items()} | {"samples": rounds}


def _waited(torch_side: Any, run: Callable[[], Any]) -> timing.Run:
    def waited() -> None:
        run()
        torch_side.wait()

    return waited


class Work:
    """A model with its calibration tokens, for both sides."""

    def __init__(self, config: LlamaConfig, params: Tree, args: argparse.Namespace) -> None:
        """Draw the tokens; every batch has the same shape."""
        self.config, self.params, self.args = config, params, args
        shape = (args.samples // args.batch, args.batch, args.length)
        drawn = np.random.default_rng(0).integers(0, config.vocab_size, shape, dtype=np.int32)
        self.tokens = list(drawn)
        self.batches = [jnp.asarray(batch) for batch in drawn]
        self.torch: Any = None if args.without_torch else twin()

    def blocks(self) -> Iterator[Any]:
        """Yield the blocks in torch, with the dense weights."""
        return (self.torch.Block(self.config, layer) for layer in ours.layers(self.params))

    def embedded(self) -> list[Any]:
        """Return what enters the first block in torch."""
        table = np.asarray(self.params["embed_tokens"]["embedding"])
        return self.torch.embedded(table, self.tokens)

    def target(self, name: str) -> Any:
        """Return what is to be pruned, in the words of the torch side."""
        target = ours.TARGETS[name]
        pattern = target.pattern
        group = (pattern.n, pattern.m) if isinstance(pattern, NM) else None
        return self.torch.Target(target.sparsity, group)


# One block, phase by phase


def block_rows(work: Work, save: Save) -> list[Row]:
    """Time one block; a row for each setting of TF32, method and pattern."""
    rows: list[Row] = []
    solved: dict[tuple[str, str], Row] = {}
    for tf32 in [{"off": False, "on": True}[word] for word in work.args.tf32]:
        graph = ours.traced(work.config, work.params, work.batches[0], tf32=tf32)
        side = _TorchBlock(work, tf32) if work.torch else None
        forward: Row = {}
        for method in work.args.methods:
            phases = ours.Phases(graph, work.params, work.batches, method)
            streams = _streams(phases, side, method, work.args.seconds, forward)
            forward = forward or {key: streams[key] for key in streams if "forward" in key}
            timing.said(f"{method}: passes are timed")
            if (method, "50%") not in solved:
                solved |= _solved(work, phases, side, method)
            for pattern in ours.TARGETS:
                rows.append({"tf32": tf32, **forward, **streams, **solved[method, pattern]})
            save({"rows": rows})
            timing.said(f"{method}: pruning is timed")
            del phases
    return rows


class _TorchBlock:
    """The block and its inputs in torch."""

    def __init__(self, work: Work, tf32: bool) -> None:
        self.torch = work.torch
        self.torch.set_tf32(tf32)
        self.block = next(work.blocks())
        self.inputs = work.embedded()
        self.stats: Any = None

    def collect(self, method: str, batches: int | None = None) -> None:
        self.stats = None  # those of the pass before make room
        kind = self.torch.METHODS[method][0]
        self.stats = self.torch.collect(self.block, self.inputs[:batches], kind)

    def forward(self) -> None:
        self.torch.forward(self.block, self.inputs)

    def solve(self, method: str, target: Any) -> dict[str, Any]:
        return self.torch.solve(self.block, self.stats, self.torch.METHODS[method][1], target)


def _streams(
    phases: ours.Phases, side: _TorchBlock | None, method: str, seconds: float, known: Row
) -> Row:
    """Time the passes over all batches: without statistics, unless known, and with them."""
    start = time.perf_counter()
    phases.warm()
    first = time.perf_counter() - start
    runs = {"forward": phases.forward} if not known else {}
    runs["collect"] = lambda: [weight.inputs for weight in phases.collect()]
    if side is not None:
        side.torch.restart_peak()
        side.collect(method, 1)
        if not known:
            runs["torch_forward"] = _waited(side.torch, side.forward)
        runs["torch_collect"] = _waited(side.torch, lambda: side.collect(method))
    found = medians(runs, seconds)
    passes = found["collect"] + (known | found)["forward"]
    one = passes / len(phases.model.live)
    return found | {"compile_passes": max(0.0, first - one)}


def _solved(
    work: Work, phases: ours.Phases, side: _TorchBlock | None, method: str
) -> dict[tuple[str, str], Row]:
    """Compare what both sides prune, then time it; by method and pattern."""
    weights = phases.weights
    grams = weights if method == "sparsegpt" else None
    rows: dict[tuple[str, str], Row] = {}
    mine: dict[str, dict[str, np.ndarray]] = {}
    theirs: dict[str, dict[str, np.ndarray]] = {}
    compiled = {}
    for pattern, target in ours.TARGETS.items():
        start = time.perf_counter()
        compiled[pattern] = ours.solvers(weights, method, target)
        row: Row = {"method": method, "pattern": pattern}
        row["compile_solve"] = time.perf_counter() - start
        rows[method, pattern] = row
        found = ours.solve(weights, compiled[pattern])
        mine[pattern] = {name: np.asarray(pruned.weight) for name, pruned in found.items()}
        if side is not None:
            pruned = side.solve(method, work.target(pattern))
            theirs[pattern] = {name: _host(weight) for name, weight in pruned.items()}
            del pruned
            row["equal"] = equal_share(mine[pattern], theirs[pattern])
        del found
    _peaks(phases, side, list(rows.values()))
    grams = grams or _grams(work)  # Wanda's errors need them too, after the peak was read
    for pattern in ours.TARGETS:
        row, given = rows[method, pattern], [mine[pattern]]
        given += [theirs[pattern]] if side is not None else []
        row |= zip(("error", "torch_error"), ours.errors(grams, *given), strict=False)
        runs: dict[str, timing.Run] = {
            "solve": lambda pattern=pattern: ours.solve(weights, compiled[pattern])
        }
        if side is not None:
            target = work.target(pattern)
            solve = lambda target=target: side.solve(method, target)  # noqa: E731
            runs["torch_solve"] = _waited(side.torch, solve)
        row |= medians(runs, work.args.seconds)
        row["solve_samples"] = row.pop("samples")
    return rows


def _peaks(phases: ours.Phases, side: _TorchBlock | None, rows: Sequence[Row]) -> None:
    """Send the batches on, which takes the most memory, and note the peaks."""
    phases.outputs()
    peaks: Row = {"peak_bytes": ours.peak_bytes()}
    if side is not None:
        outputs = side.torch.outputs(side.block, side.inputs)
        peaks["torch_peak_bytes"] = side.torch.peak_bytes()
        del outputs
    for row in rows:
        row.update(peaks)


def _grams(work: Work) -> Any:
    """Return the block's weights with the Gram matrices of a few batches."""
    graph = ours.traced(work.config, work.params, work.batches[0], tf32=False)
    few = work.batches[: max(1, len(work.batches) // 8)]
    return ours.Phases(graph, work.params, few, "sparsegpt").collect()


def _host(weight: Any) -> np.ndarray:
    """Return a torch weight (out, in) as a matrix (in, out)."""
    return weight.T.contiguous().cpu().numpy()  # turned on the device: the host is slow at it


def equal_share(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """Return the share of entries in which two sides' masks are the same."""
    same = sum(int(((a[name] != 0) == (b[name] != 0)).sum()) for name in a)
    return same / sum(a[name].size for name in a)


# The whole model


def smollm2_rows(work: Work, save: Save) -> list[Row]:
    """Time the whole model; a row for each method and pattern."""
    graph = ours.traced(work.config, work.params, work.batches[0], tf32=False)
    cases = [(m, p) for m in work.args.methods for p in ours.TARGETS]
    compiled = _compiled(work, cases)
    timing.said("pruning is compiled")
    for method in work.args.methods:
        ours.prune(graph, work.params, work.batches[:1], method, ours.TARGETS["50%"])
    ours.forward(graph, work.params, work.batches[:1])
    forward: Row = medians(
        {"forward": lambda: ours.forward(graph, work.params, work.batches)}, work.args.seconds
    )
    if work.torch:
        forward |= _torch_forward(work)
    grams = ours.Phases(graph, work.params, work.batches, "sparsegpt").collect()
    timing.said("forward passes are timed")
    rows: list[Row] = []
    for method, pattern in cases:
        row: Row = {"method": method, "pattern": pattern, **forward}
        row["compile"] = compiled[method, pattern]
        found = _whole(work, graph, row)
        if work.torch:
            _torch_whole(work, row, found, grams)
        rows.append(row)
        save({"rows": rows})
        timing.said(f"{method} {pattern}")
    return rows


def _compiled(work: Work, cases: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Compile the pruning of every shape, all cases side by side; return the seconds of each.

    Done on two blocks, whose memory is not seen in the peak of all of them.
    """
    config = dataclasses.replace(work.config, num_hidden_layers=2)
    layers = jax.tree.map(lambda leaf: leaf[:2], work.params["layers"])
    params = {**work.params, "layers": layers}
    graph = ours.traced(config, params, work.batches[0], tf32=False)

    def first(case: tuple[str, str]) -> float:
        start = time.perf_counter()
        ours.prune(graph, params, work.batches[:1], case[0], ours.TARGETS[case[1]])
        return time.perf_counter() - start

    with ThreadPoolExecutor() as pool:
        return dict(zip(cases, pool.map(first, cases), strict=True))


def _whole(work: Work, graph: Any, row: Row) -> Any:
    """Prune the model by the public call; what has run once before is compiled."""
    start = time.perf_counter()
    target = ours.TARGETS[row["pattern"]]
    found = ours.prune(graph, work.params, work.batches, row["method"], target)
    row["seconds"] = time.perf_counter() - start
    row["block"] = statistics.median(block.seconds for block in found.blocks)
    row["peak_bytes"] = ours.peak_bytes()
    return found


def _torch_forward(work: Work) -> Row:
    work.torch.set_tf32(False)
    blocks = list(work.blocks())
    work.torch.forward(blocks[0], work.embedded()[:1])

    def run() -> None:
        inputs = work.embedded()
        for block in blocks:
            inputs = work.torch.outputs(block, inputs)

    found = medians({"torch_forward": _waited(work.torch, run)}, work.args.seconds)
    return {"torch_forward": found["torch_forward"]}


def _torch_whole(work: Work, row: Row, found: Any, grams: Any) -> None:
    """Prune the model in torch, block after block, and compare."""
    kind, prune = work.torch.METHODS[row["method"]]
    blocks, inputs, target = list(work.blocks()), work.embedded(), work.target(row["pattern"])
    stats = work.torch.collect(blocks[0], inputs[:1], kind)  # libraries start with the first call
    work.torch.solve(blocks[0], stats, prune, target)
    work.torch.wait()
    work.torch.restart_peak()
    seconds = []
    start = time.perf_counter()
    for block in blocks:
        begun = time.perf_counter()
        stats = work.torch.collect(block, inputs, kind)
        work.torch.put(block, work.torch.solve(block, stats, prune, target))
        work.torch.wait()
        seconds.append(time.perf_counter() - begun)
        inputs = work.torch.outputs(block, inputs)
    work.torch.wait()
    row["torch_seconds"] = time.perf_counter() - start
    row["torch_block"] = statistics.median(seconds)
    row["torch_peak_bytes"] = work.torch.peak_bytes()
    mine = list(ours.layers(found.params))
    pairs = [_pair(layer, block) for layer, block in zip(mine, blocks, strict=True)]
    row["equal"] = equal_share(*pairs[0])
    row["equal_all"] = statistics.mean(equal_share(*pair) for pair in pairs)
    row["error"], row["torch_error"] = ours.errors(grams, *pairs[0])


def _pair(
    layer: Mapping[str, np.ndarray], block: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return a pruned block's matrices (in, out) of both sides, by the layer's name."""
    theirs = {name: _host(linear.weight.detach()) for name, linear in block.linears.items()}
    return {name: layer[f"{name}/kernel"] for name in theirs}, theirs
