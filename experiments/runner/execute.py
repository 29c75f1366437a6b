"""Run cells, several at once if asked, with a bar for each; each is saved when it is done."""

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.runner import store
from experiments.runner.api import Cell, Context, StoppedError

LAST_FRAMES = 4  # of the traceback of a cell that failed, its last line included


class Job(NamedTuple):
    """A cell that is to be run, and where its result goes."""

    cell: Cell
    path: Path
    settings: dict[str, Any]


def pending(
    cells: Sequence[Cell], folder: Path, context: Context, digests: dict[str, str], *, force: bool
) -> list[Job]:
    """Return what is still to be run; refuse before anything runs what does not fit.

    Raises:
      SettingsMismatchError: a result of other settings is there, and ``force`` is not given.
    """
    jobs = []
    for cell in cells:
        settings = store.decisive(cell, context.seeds, digests)
        path = folder / f"{cell.name}.json"
        try:
            done = store.is_done(path, settings)
        except store.SettingsMismatchError:
            if not force:
                raise
            done = False
        if not done:
            jobs.append(Job(cell, path, settings))
    return jobs


def run(
    jobs: Sequence[Job],
    context: Context,
    origin: store.Origin,
    *,
    threads: int,
    console: Console,
) -> list[str]:
    """Run jobs; return a text for each that failed; the others are saved."""
    columns = [TextColumn("{task.description:>24}"), BarColumn(), MofNCompleteColumn()]
    notes = [TimeElapsedColumn(), TextColumn("{task.fields[note]}")]
    stopped = threading.Event()
    with Progress(*columns, *notes, console=console) as bar:
        overall = bar.add_task("cells", total=len(jobs), note="")
        pool = ThreadPoolExecutor(threads)
        futures: dict[Future[float], Job] = {
            pool.submit(_one, job, context, origin, bar, stopped): job for job in jobs
        }
        try:
            return _collected(futures, bar, lambda: bar.advance(overall))
        finally:  # after Ctrl-C, those that run notice at their next report
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _collected(
    futures: dict[Future[float], Job], bar: Progress, advance: Callable[[], None]
) -> list[str]:
    failures = []
    for future in as_completed(futures):
        name = futures[future].cell.name
        error = future.exception()
        advance()
        if error is None:
            _print_where_no_bar(bar, f"{name}: done in {future.result():.0f} s")
            continue
        story = "".join(traceback.format_exception(error)[-LAST_FRAMES:])
        failures.append(f"{name}: {story.strip()}")
        _print_where_no_bar(bar, failures[-1])
    return failures


def _print_where_no_bar(bar: Progress, text: str) -> None:
    if not bar.console.is_terminal:
        bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _one(
    job: Job, context: Context, origin: store.Origin, bar: Progress, stopped: threading.Event
) -> float:
    """Run one cell and save it; return the seconds that it took, others beside it."""
    began = time.perf_counter()
    row = bar.add_task(job.cell.name, total=None, note="")

    def tell(done: int, total: int, note: str) -> None:
        bar.update(row, completed=done, total=total, note=note)
        if stopped.is_set():
            raise StoppedError(f"{job.cell.name} was stopped")

    try:
        values = job.cell.run(context.for_cell(tell))
        seconds = time.perf_counter() - began
        store.save(job.path, job.settings, values, origin, seconds)
        return seconds
    finally:
        bar.remove_task(row)
