"""The command line of the experiments."""

import argparse
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from rich.console import Console

from experiments.runner import catalogue, data, execute, page, store
from experiments.runner.api import Cell, Context, Experiment, UsageError

GPU_THREADS = 3  # a GPU waits while programs are compiled; with more, they wait for one another


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    asked = _parser().parse_args(arguments)
    console = Console()
    try:
        command: Callable[[argparse.Namespace, Console], int] = asked.command
        return command(asked, console)
    except UsageError as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("Stopped; what was done is kept, and the same command goes on from there.")
        return 130


def _list(asked: argparse.Namespace, console: Console) -> int:
    for name in catalogue.names():
        experiment = catalogue.find(name)
        cells = len(experiment.cells(False))
        line = f"{name}: {experiment.about} ({cells} cells, {experiment.seeds} seeds)"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def _prepare(asked: argparse.Namespace, console: Console) -> int:
    sources = {}
    for name in asked.names or catalogue.names():
        sources.update(catalogue.find(name).sources)
    data.prepare(sources, asked.file)
    size = asked.file.stat().st_size / 1e6
    console.print(f"{', '.join(sources)}: {size:.1f} MB in {asked.file}", soft_wrap=True)
    return 0


def _run(asked: argparse.Namespace, console: Console) -> int:
    experiment = catalogue.find(asked.name)
    cells = _selected(experiment.cells(asked.quick), asked.only)
    seeds = tuple(range(asked.seeds or (2 if asked.quick else experiment.seeds)))
    folder = _folder(asked) / experiment.name
    context = Context(data.gather(experiment.sources, asked.data), seeds, quick=asked.quick)
    digests = data.digests(context.data)
    jobs = execute.pending(cells, folder, context, digests, force=asked.force)
    on_gpu = jax.default_backend() != "cpu"
    threads = asked.jobs or (GPU_THREADS if on_gpu else 1)
    done = len(cells) - len(jobs)
    console.print(f"{experiment.name}: {done} of {len(cells)} cells are done, {threads} at a time")
    origin = store.Origin(_device(), jax.__version__, _command(experiment, asked, len(seeds)))
    failures = execute.run(jobs, context, origin, threads=threads, console=console)
    for line in failures:
        console.print(f"failed: {line}", markup=False, highlight=False, soft_wrap=True)
    return 1 if failures else 0


def _report(asked: argparse.Namespace, console: Console) -> int:
    experiments = [catalogue.find(name) for name in catalogue.names()]
    page.write(page.load(experiments, _folder(asked)), asked.page)
    console.print(f"wrote {asked.page}", soft_wrap=True)
    return 0


def _folder(asked: argparse.Namespace) -> Path:
    if asked.results is not None:
        return asked.results
    return store.QUICK_RESULTS if asked.quick else store.RESULTS


def _selected(cells: Sequence[Cell], only: str | None) -> list[Cell]:
    chosen = [cell for cell in cells if only is None or re.search(only, cell.name)]
    if not chosen:
        known = ", ".join(cell.name for cell in cells)
        raise UsageError(f"--only {only!r} matches no cell; there are {known}.")
    return chosen


def _command(experiment: Experiment, asked: argparse.Namespace, seeds: int) -> str:
    """Return the command that makes these results, without what only says where things are."""
    parts = ["python", "-m", "experiments", "run", experiment.name, "--seeds", str(seeds)]
    return shlex.join([*parts, *(["--quick"] if asked.quick else [])])


def _device() -> str:
    first = jax.devices()[0]
    return "CPU" if first.platform == "cpu" else first.device_kind


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description="Published claims, put to the test."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listed = commands.add_parser("list", help="show the experiments")
    listed.set_defaults(command=_list)

    prepare = commands.add_parser("prepare", help="write their data to one file, for --data")
    prepare.add_argument("file", type=_archive, metavar="FILE.npz")
    prepare.add_argument("names", nargs="*", metavar="NAME", help="of experiments; all by default")
    prepare.set_defaults(command=_prepare)

    run = commands.add_parser("run", help="run what is not done yet of one experiment")
    run.add_argument("name", metavar="NAME")
    run.add_argument("--seeds", type=_count, help="how many; each experiment has its number")
    run.add_argument("--quick", action="store_true", help="a rehearsal of a minute, on a CPU")
    run.add_argument("--only", metavar="REGEX", help="cells in whose names it is found")
    run.add_argument("--data", type=Path, metavar="FILE.npz", help="what `prepare` wrote")
    run.add_argument("--jobs", type=_count, help="cells at a time: 1 on a CPU, 8 on a GPU")
    run.add_argument("--force", action="store_true", help="replace results of other settings")
    run.set_defaults(command=_run)

    report = commands.add_parser("report", help="write docs/experiments.md from the results")
    report.add_argument("--page", type=Path, default=page.PAGE)
    report.set_defaults(command=_report, quick=False)
    for each in (run, report):
        each.add_argument("--results", type=Path, metavar="DIR", help="of the result files")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def _archive(text: str) -> Path:
    if not text.endswith(".npz"):
        raise argparse.ArgumentTypeError(f"must end in .npz, got {text!r}")
    return Path(text)
