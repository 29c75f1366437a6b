"""Compile training steps for slices of TPUs that are not there, and write docs/pod.md.

python -m experiments.pod            # what is not done yet, then the page
python -m experiments.pod report     # the page alone
"""

import argparse
import importlib.metadata
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console

from experiments.benchmarks import tpu_aot
from experiments.pod import cells, measure, report
from experiments.runner import store
from experiments.runner.api import UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile what is missing and write the page; return the exit status."""
    asked = _parser().parse_args(arguments)
    console = Console()
    try:
        if asked.command != "report":
            _run(asked, console)
        if asked.command != "run":
            asked.page.write_text(report.text(cells.load(asked.results)))
            console.print(f"wrote {asked.page}", soft_wrap=True)
    except UsageError as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    return 0


def _run(asked: argparse.Namespace, console: Console) -> None:
    reason = tpu_aot.missing()
    if reason is not None:
        raise UsageError(reason)
    chosen = [c for c in (cells.SMALL if asked.small else cells.CELLS) if c.matches(asked.only)]
    if not chosen:
        raise UsageError(
            f"--only {asked.only!r} matches no cell; they are named like v5e-256-7b-bare"
        )
    origin = store.Origin(
        f"libtpu {importlib.metadata.version('libtpu')}",
        jax.__version__,
        "python -m experiments.pod",
    )
    with measure.reporting() as reports:
        for cell in chosen:
            path = asked.results / f"{cell.name}.json"
            if not asked.force and store.is_done(path, cell.settings):
                continue
            start = time.perf_counter()
            values = cell.run(reports)
            store.save(path, cell.settings, values, origin, time.perf_counter() - start)
            line = f"{cell.name}: {values['bytes'] / 1e9:.2f} GB, {values.get('seconds', '-')} s"
            console.print(line, highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    text = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m experiments.pod", description=text)
    parser.add_argument("command", nargs="?", choices=("run", "report"))
    parser.add_argument("--only", default="", metavar="REGEX", help="cells whose name it is in")
    parser.add_argument("--small", action="store_true", help="tiny decoders on four chips")
    parser.add_argument("--force", action="store_true", help="compile again what is done")
    parser.add_argument("--results", type=Path, default=cells.RESULTS, metavar="FOLDER")
    parser.add_argument("--page", type=Path, default=report.PAGE, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
