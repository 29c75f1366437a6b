"""The data of experiments: fetched from its source, or read from one file that was prepared."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runner.api import Arrays, UsageError

Sources = Mapping[str, Callable[[], Arrays]]


def gather(sources: Sources, file: Path | None) -> dict[str, Arrays]:
    """Return the arrays of each source, from the file if there is one."""
    if file is None:
        return {name: dict(fetch()) for name, fetch in sources.items()}
    with np.load(file) as stored:
        found: dict[str, dict[str, np.ndarray]] = {name: {} for name in sources}
        for key in stored.files:
            source, _, name = key.partition("/")
            if source in found:
                found[source][name] = stored[key]
    missing = [name for name, arrays in found.items() if not arrays]
    if missing:
        raise UsageError(
            f"--data {str(file)!r} has no arrays of {', '.join(missing)}. Write the file anew with "
            f"`python -m experiments prepare {file}`."
        )
    return dict(found)


def prepare(sources: Sources, file: Path) -> None:
    """Write the arrays of all sources to one compressed file."""
    gathered = gather(sources, None)
    flat: dict[str, Any] = {
        f"{source}/{name}": a for source, arrays in gathered.items() for name, a in arrays.items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial.npz")  # numpy insists on the ending
    np.savez_compressed(partial, **flat)
    partial.replace(file)


def digests(data: Mapping[str, Arrays]) -> dict[str, str]:
    """Return a digest of each source's arrays."""
    return {source: _digest(arrays) for source, arrays in data.items()}


def _digest(arrays: Arrays) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"{name}{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()[:16]
