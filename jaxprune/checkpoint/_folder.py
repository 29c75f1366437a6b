"""Steps on disk: one folder each, which is complete and unchanged or reported as damaged.

A step is written under a hidden name and renamed when everything is on disk. Its manifest lists
every file with its size and CRC-32, so that truncation, loss and bit rot are all found before the
arrays are read.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

MANIFEST = "manifest.json"
FORMAT = 1

Share: TypeAlias = tuple[int, int]
"""``(i, n)``: every n-th file from the i-th on, so that n processes read each file once."""

WHOLE: Share = (0, 1)

_STEP = re.compile(r"0|[1-9][0-9]*")
_LEFTOVER = re.compile(r"\.[0-9]+\.(partial|removed)")


def steps_in(folder: Path) -> list[int]:
    """Return the steps in a folder, ascending; damaged ones are among them."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if _STEP.fullmatch(entry.name))


def partial_of(folder: Path, step: int) -> Path:
    """Return where a step is written until it is complete."""
    return folder / f".{step}.partial"


def clear(folder: Path) -> None:
    """Create the folder, and remove what interrupted saves have left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if _LEFTOVER.fullmatch(entry.name):
            shutil.rmtree(entry)


def written(folder: Path, step: int) -> list[str]:
    """Return the files of a step that is being written."""
    root = partial_of(folder, step)
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def digests(folder: Path, step: int, names: list[str]) -> dict[str, list[int]]:
    """Return the size and the CRC-32 of some files of a step that is being written."""
    return {name: _digest(partial_of(folder, step) / name) for name in names}


def commit(folder: Path, step: int, content: dict[str, Any], files: dict[str, Any]) -> None:
    """Add the manifest to a written step and give the step its name, in one rename."""
    partial = partial_of(folder, step)
    content = {"format": FORMAT, "step": step, **content, "files": files}
    with open(partial / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.rename(partial, folder / str(step))
    _flush(folder)


def remove_older(folder: Path, step: int, keep: int) -> None:
    """Remove the steps before ``step``, except for the newest ``keep - 1`` intact ones.

    A step loses its name before its files, so that an interruption leaves no torn step behind.
    """
    older = [s for s in steps_in(folder) if s < step]
    intact = [s for s in older if _damage(folder / str(s), _size) is None]
    for old in intact[: max(len(intact) - (keep - 1), 0)]:
        removed = folder / f".{old}.removed"
        os.rename(folder / str(old), removed)
        shutil.rmtree(removed)


def damage(folder: Path, step: int, share: Share = WHOLE) -> str | None:
    """Say what is wrong with a share of a step's files; None if they are as they were written."""
    return _damage(folder / str(step), _digest, share)


def last_intact(folder: Path) -> int | None:
    """Return the newest step whose files are as they were written."""
    return next((s for s in reversed(steps_in(folder)) if damage(folder, s) is None), None)


def manifest(folder: Path, step: int) -> dict[str, Any]:
    """Return the manifest of an intact step."""
    return json.loads((folder / str(step) / MANIFEST).read_text(encoding="utf-8"))


def _damage(root: Path, measure: Callable[[Path], list[int]], share: Share = WHOLE) -> str | None:
    try:
        content = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            return f"{MANIFEST} has format {content['format']}, written by a newer jaxprune"
        files = list(content["files"].items())[share[0] :: share[1]]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    for name, want in files:
        if not (root / name).is_file():
            return f"{name} is missing"
        got = measure(root / name)
        if got[0] != want[0]:
            return f"{name} has {got[0]} of {want[0]} bytes"
        if got != want[: len(got)]:
            return f"the content of {name} has changed"
    return None


def _size(path: Path) -> list[int]:
    return [path.stat().st_size]


def _digest(path: Path) -> list[int]:
    """Return the size and the CRC-32 of a file, read in pieces."""
    size = crc = 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            size, crc = size + len(piece), zlib.crc32(piece, crc)
    return [size, crc]


def _flush(folder: Path) -> None:
    """Put a folder's entries on disk, so that a rename outlives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
