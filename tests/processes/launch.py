"""Start the processes of one program on this machine, and leave none behind."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class End(NamedTuple):
    """How a process ended."""

    code: int | None  # negative: the signal; None: it was still there, and was killed
    text: str  # what it printed, errors too


def run(
    logs_in: Path,
    task: str,
    *,
    count: int,
    devices: int = 2,
    present: int | None = None,
    seconds: float = 120.0,
    grace: float = 1.0,
    patience: int = 60,
    heartbeat: int = 60,
    stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> list[End]:
    """Run a task of `tests.processes.worker` in some processes; return how each ended.

    Args:
      logs_in: where they print to.
      task: its name.
      count: of the program's processes.
      devices: of each.
      present: how many are started; all by default.
      seconds: after which those that are left are killed.
      grace: seconds after the first failure in which the others may end by themselves.
      patience: seconds that the processes wait for each other at the start.
      heartbeat: seconds without a sign of life after which a process counts as dead.
      stop: says when all are to be killed.
      **settings: of the task.
    """
    address = f"localhost:{_free_port()}"
    common = {"task": task, "address": address, "count": count}
    common |= {"patience": patience, "heartbeat": heartbeat}
    logs = [logs_in / f"process{i}.log" for i in range(count if present is None else present)]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for index, log in enumerate(logs):
            arguments = json.dumps({**settings, **common, "index": index})
            with open(log, "wb") as file:
                running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "tests.processes.worker", arguments],
                        cwd=ROOT,
                        env=_environment(devices),
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )
        codes = _wait(running, time.monotonic() + seconds, grace, stop)
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [End(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]


def _wait(
    running: list[subprocess.Popen[bytes]], end: float, grace: float, stop: Callable[[], bool]
) -> list[int | None]:
    """Wait for all; when one has failed, the others cannot go on."""
    failed = False
    while True:
        codes = [process.poll() for process in running]
        if None not in codes or time.monotonic() > end or stop():
            return codes
        if not failed and any(codes):
            failed, end = True, min(end, time.monotonic() + grace)
        time.sleep(0.05)


def _environment(devices: int) -> dict[str, str]:
    flags = re.sub(
        r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", "")
    )
    flags += f" --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
