"""One JSON file for each cell: written as a whole or not at all, and known by its settings."""

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runner.api import Cell, Result, Results, UsageError

RESULTS = Path(__file__).parents[1] / "results"
QUICK_RESULTS = Path("runs/quick")


class SettingsMismatchError(UsageError):
    """A result is there, but of other settings, seeds or data."""


class Origin(NamedTuple):
    """Where and how a result came about; it does not decide the result."""

    device: str
    jax: str
    command: str


def decisive(cell: Cell, seeds: tuple[int, ...], data: Mapping[str, str]) -> dict[str, Any]:
    """Return all that decides a result, as JSON holds it."""
    settings = {**cell.settings, "seeds": list(seeds), "data": dict(data)}
    held: dict[str, Any] = json.loads(json.dumps(settings, allow_nan=False))
    return held


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return a digest of settings that does not depend on their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def is_done(path: Path, settings: Mapping[str, Any]) -> bool:
    """Tell whether a cell's result is there.

    Raises:
      SettingsMismatchError: it is there, but of other settings.
    """
    if not path.exists():
        return False
    known = json.loads(path.read_text())
    if known["fingerprint"] == fingerprint(settings):
        return True
    before = known["settings"]
    differ = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
    changes = ", ".join(f"{k} {before.get(k)!r} is now {settings.get(k)!r}" for k in differ)
    raise SettingsMismatchError(
        f"{str(path)!r} is the result of other settings: {changes}. Run with the same ones, write "
        "elsewhere with --results, or replace it with --force."
    )


def save(
    path: Path,
    settings: Mapping[str, Any],
    values: Mapping[str, Any],
    origin: Origin,
    seconds: float,
) -> None:
    """Write the result of a cell."""
    content = {
        "fingerprint": fingerprint(settings),
        "settings": settings,
        **origin._asdict(),
        "seconds": round(seconds, 1),
        "values": values,
    }
    # Made before the file is touched: a number that is not finite is an error, not half a file.
    text = _laid_out(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    partial.write_text(text)
    partial.replace(path)


def load(folder: Path) -> Results:
    """Read the results of an experiment, in the order of their names."""
    return {path.stem: _read(path) for path in sorted(folder.glob("*.json"))}


def _read(path: Path) -> Result:
    known = json.loads(path.read_text())
    settings = dict(known["settings"])
    seeds = tuple(settings.pop("seeds"))
    settings.pop("data")
    origin = (known["device"], known["jax"], known["command"])
    return Result(path.stem, settings, seeds, *origin, known["values"])


def _laid_out(content: Mapping[str, Any]) -> str:
    """Write JSON with an entry a line, two levels deep: short, and readable in a diff."""

    def lines(mapping: Mapping[str, Any], indent: str, deeper: int) -> str:
        rows = []
        for key, value in mapping.items():
            nested = deeper and isinstance(value, Mapping) and value
            text = lines(value, indent + " ", deeper - 1) if nested else _one_line(value)
            rows.append(f"{indent} {json.dumps(key)}: {text}")
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"

    return lines(content, "", 1) + "\n"


def _one_line(value: Any) -> str:
    return json.dumps(value, allow_nan=False)
