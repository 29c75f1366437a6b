"""``jaxprune llm``: prune a language model in one shot."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jaxprune import models, posttraining, scores
from jaxprune.cli import tables, tokens
from jaxprune.cli.folder import Folder, digest
from jaxprune.cli.methods import METHODS, check_groups, pattern_of
from jaxprune.cli.report import masks_of, report_of
from jaxprune.cli.source import Source, open_model
from jaxprune.graph import trace
from jaxprune.posttraining import Block, Result
from jaxprune.types import Tree

Name = Literal["magnitude", "wanda", "ria", "gblm", "sparsegpt", "admm", "alps"]
_BLOCKS = r"^layers(_\d+)?/.*kernel$"  # not the embedding, not the head


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the arguments ask for, read and checked."""

    source: Source
    method: str
    allocation: str
    calibration: np.ndarray
    evaluation: np.ndarray
    pattern: Any
    sparsity: float
    batch: int


def llm(
    *,
    calibration: Path,
    eval: Path,
    out: Path,
    model: str = "smollm2-135m",
    method: Name = "sparsegpt",
    pattern: Annotated[str, tyro.conf.arg(metavar="unstructured|N:M")] = "unstructured",
    sparsity: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")] = None,
    allocation: Literal["uniform", "owl"] = "uniform",
    samples: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None,
    length: int = 512,
    batch_size: int = 2,
    seed: int = 0,
    random_windows: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False,
    resume: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False,
) -> None:
    """Prune a language model in one shot, block after block.

    The folder gets a Hugging Face model, masks.safetensors and report.json.

    An interrupted run has lost one block at most, and goes on with --resume.

    Args:
      calibration: a text, or an .npz with an array calib of token ids (windows, tokens).
      eval: a text, or an .npz with an array eval of token ids (windows, tokens).
      out: folder for the results, empty or not there yet.
      model: smollm2-135m, a Hugging Face folder of the Llama family, or a .gguf file.
      method: how weights are chosen, and whether others make up for them.
      pattern: any weights, or at most N of every M consecutive inputs, as 2:4.
      sparsity: share of zeros in the blocks' weights. If left out, 0.5 or what N:M has.
      allocation: the same sparsity for every block, or by the outliers of each (OWL).
      samples: calibration windows. If left out, 16 of a text, or all that an .npz has.
      length: tokens in a window, where a text is cut.
      batch_size: windows that go through a block together.
      seed: of random windows.
      random_windows: cut a text's calibration windows at random places, not at even distances.
      resume: go on with an interrupted run.
    """
    start = time.perf_counter()
    kept, share = pattern_of(pattern, sparsity)
    _check(kept, allocation, batch_size)
    source = open_model(model)
    check_groups(kept, source.config)
    calib = tokens.windows(
        calibration, "calib", source.config, source.path,
        count=samples, length=length, default=16, seed=seed if random_windows else None,
    )  # fmt: skip
    evaluation = tokens.windows(eval, "eval", source.config, source.path, length=length)
    batch = _divisor(len(calib), batch_size)
    run = _Run(source, method, allocation, calib, evaluation, kept, share, batch)
    settings = {
        "model": source.name, "weights": source.fingerprint(), "method": method,
        "pattern": pattern, "sparsity_asked": share, "allocation": allocation,
        "seed": seed, "random_windows": random_windows,
        "windows": {"calibration": list(calib.shape), "evaluation": list(evaluation.shape)},
        "batch_size": batch, "calibration": digest(calib), "evaluation": digest(evaluation),
    }  # fmt: skip
    console, folder = Console(), Folder(out, settings, resume=resume)
    report = folder.report
    if report is None:
        report = _work(run, folder, settings, start, console)
    else:
        console.print("The run is finished.")
    tables.print_report(report, out, console)


def _check(pattern: Any, allocation: str, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"--batch-size must be 1 or more, got {batch_size}.")
    if allocation == "owl" and pattern.final_sparsity is not None:
        raise ValueError(
            f"--allocation owl divides a sparsity among the blocks, and --pattern {pattern.n}:"
            f"{pattern.m} has the same in all of them. Pass --pattern unstructured."
        )


def _divisor(count: int, most: int) -> int:
    """Return the largest batch, of ``most`` at most, that makes all batches alike."""
    return max(n for n in range(1, min(most, count) + 1) if count % n == 0)


def _work(
    run: _Run, folder: Folder, settings: dict[str, Any], start: float, console: Console
) -> dict[str, Any]:
    params = run.source.load()
    dense = _perplexity(run, params, "dense", console)
    result = _pruned(run, params, folder, console)
    pruned = _perplexity(run, result.params, "pruned", console)
    tables.print_blocks(result.blocks, console)
    tokenizer = run.source.tokenizer()
    models.save(folder.path, run.source.config, result.params, tokenizer=tokenizer, overwrite=True)
    seconds = time.perf_counter() - start
    report = report_of(settings, result, dense=dense, pruned=pruned, seconds=seconds)
    folder.finish(masks_of(result), report)
    return report


def _perplexity(run: _Run, params: Tree, which: str, console: Console) -> float:
    fn = models.llama(run.source.config)
    with _bar(console) as bar:
        task = bar.add_task(f"{which} perplexity", total=len(run.evaluation))
        found = models.perplexity(
            fn,
            params,
            run.evaluation,
            progress=lambda done, of, value: bar.update(task, completed=done, total=of),
        )
    console.print(f"{which} perplexity {found.value:.3f}", highlight=False)
    return found.value


def _pruned(run: _Run, params: Tree, folder: Folder, console: Console) -> Result:
    fn = models.llama(run.source.config)
    windows = jnp.asarray(run.calibration)
    batches = [windows[i : i + run.batch] for i in range(0, len(windows), run.batch)]
    graph = trace(fn, params, batches[0])
    how = METHODS[run.method]()
    gradients = _gradients(fn, params, windows) if "gradient" in how.needs else None
    share = _shares(run, graph, params, batches)
    with _bar(console) as bar:
        task = bar.add_task(f"{run.method}, block", total=None)

        def done(block: Block) -> None:
            folder.save(block)
            bar.update(task, completed=block.number + 1, total=block.of)
            if not console.is_terminal:  # a log has no bar
                line = f"block {block.number + 1} of {block.of} in {block.seconds:.1f} s"
                console.print(line, highlight=False)

        def known(number: int) -> Block | None:
            block = folder.load(number)
            if block is not None:
                bar.update(task, completed=number + 1, total=block.of)
            return block

        return posttraining.prune_blocks(
            graph, params, batches, how, sparsity=share, pattern=run.pattern, where=_BLOCKS,
            gradients=gradients, known=known, done=done,
        )  # fmt: skip


def _shares(
    run: _Run, graph: Any, params: Tree, batches: list[jax.Array]
) -> float | Callable[[int], float]:
    if run.allocation == "uniform":
        return run.sparsity
    ratios = posttraining.outlier_ratios(graph, params, batches, where=_BLOCKS)
    found = posttraining.owl_sparsities(ratios, run.sparsity)
    return lambda number: float(found[number])


def _gradients(fn: Callable[..., jax.Array], params: Tree, windows: jax.Array) -> Tree:
    def loss(params: Tree, window: jax.Array) -> jax.Array:
        logits = fn(params, window[None])[0, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, window[1:]).mean()

    return scores.gradient_norm(loss, params, list(windows), where=_BLOCKS)


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip
