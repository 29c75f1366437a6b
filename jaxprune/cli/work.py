"""A run of ``jaxprune llm``: perplexity, pruning, perplexity, and what is written down."""

from typing import Any

from rich.console import Console

from jaxprune import models, posttraining
from jaxprune.cli import tables
from jaxprune.cli.calibration import gradients_of, loss_of, shares_of
from jaxprune.cli.folder import Folder
from jaxprune.cli.methods import METHODS
from jaxprune.cli.progress import bar_of
from jaxprune.cli.report import masks_of, report_of
from jaxprune.cli.run import BLOCKS, Run
from jaxprune.graph import trace
from jaxprune.posttraining import Block, Result
from jaxprune.types import Tree


def work(run: Run, folder: Folder, settings: dict[str, Any], console: Console) -> dict[str, Any]:
    """Do a run, or the rest of it, and return its report."""
    params = run.source.load()
    dense = _perplexity(run, params, "dense", console)
    result = _pruned(run, params, folder, console)
    pruned = _perplexity(run, result.params, "pruned", console)
    tables.print_blocks(result.blocks, console)
    tokenizer = run.source.tokenizer()
    models.save(folder.path, run.source.config, result.params, tokenizer=tokenizer, overwrite=True)
    seconds = folder.seconds()
    report = report_of(settings, result, dense=dense, pruned=pruned, seconds=seconds)
    folder.finish(masks_of(result), report)
    return report


def _perplexity(run: Run, params: Tree, which: str, console: Console) -> float:
    fn = models.llama(run.source.config)
    with bar_of(console) as bar:
        task = bar.add_task(f"{which} perplexity", total=len(run.evaluation))
        found = models.perplexity(
            fn,
            params,
            run.evaluation,
            progress=lambda done, of, value: bar.update(task, completed=done, total=of),
        )
    console.print(f"{which} perplexity {found.value:.3f}", highlight=False)
    return found.value


def _pruned(run: Run, params: Tree, folder: Folder, console: Console) -> Result:
    fn = models.llama(run.source.config)
    batches, loss = run.batches(run.calibration), loss_of(fn)
    graph = trace(fn, params, batches[0])
    how = METHODS[run.method]()
    gradients = gradients_of(run, graph, params, loss) if "gradient" in how.needs else None
    share = shares_of(run, graph, params, loss, folder, console)
    with bar_of(console) as bar:
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
            graph, params, batches, how, sparsity=share, pattern=run.pattern, where=BLOCKS,
            gradients=gradients, known=known, done=done,
        )  # fmt: skip
