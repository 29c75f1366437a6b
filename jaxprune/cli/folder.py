"""The folder of a run: its blocks as they are done, the model, the masks and the report."""

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxprune.posttraining import Block, PrunedWeight

REPORT, RUN, MASKS = "report.json", "run.json", "masks.safetensors"
_CHANGED = "its content has changed since it was written"


def digest(array: np.ndarray) -> str:
    """Return what tells two arrays of tokens apart."""
    head = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


class Folder:
    """Where a run puts its results.

    Attributes:
      path: of the folder.
      report: of the run, if it was finished before.
    """

    def __init__(
        self, path: Path, run: Mapping[str, Any], *, resume: bool, start: float | None = None
    ) -> None:
        """Begin a run, or take up one of the same settings.

        Args:
          path: of the folder.
          run: the settings of the run.
          resume: whether the folder may hold a part of the same run, or all of it.
          start: ``time.perf_counter()`` when the command began; None for now.

        Raises:
          ValueError: the folder holds something else.
        """
        self.path = path
        self.report: Mapping[str, Any] | None = None
        self.blocks = path / "blocks"
        if path.exists() and not path.is_dir():
            raise ValueError(f"--out {path} is a file. Pass a folder.")
        if path.exists() and any(path.iterdir()):
            before = _settings(path)
            others = {one.name for one in path.iterdir()} - {RUN, self.blocks.name}
            # Without a block there is nothing to lose: another run may take its place.
            if others or any(self.blocks.glob("*.safetensors")):
                self._check(before, run, resume)
            elif _different(before, run):
                shutil.rmtree(self.blocks, ignore_errors=True)
        if (path / REPORT).is_file():
            self.report = read_json(path / REPORT)
            shutil.rmtree(self.blocks, ignore_errors=True)
            return
        self.blocks.mkdir(parents=True, exist_ok=True)
        self.write(RUN, run)
        begun = time.perf_counter() if start is None else start
        self._begun = begun - max(map(_elapsed, self.blocks.glob("*.safetensors")), default=0.0)

    def seconds(self) -> float:
        """Return the time that the run took so far: of sessions before, until their last block."""
        return time.perf_counter() - self._begun

    def _check(self, before: Mapping[str, Any], run: Mapping[str, Any], resume: bool) -> None:
        if not resume:
            raise ValueError(
                f"--out {self.path} holds a run. Pass --resume to go on with it, or another folder."
            )
        different = _different(before, run)
        if different:
            changes = "; ".join(f"{k}: {old!r}, now {new!r}" for k, (old, new) in different.items())
            raise ValueError(
                f"--out {self.path} holds a run with other settings ({changes}). Pass another "
                "folder, or the same settings."
            )

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        _replace(self.path / name, (json.dumps(content, indent=1) + "\n").encode())

    def save(self, block: Block) -> None:
        """Write a block, whole or not at all."""
        arrays: dict[str, np.ndarray] = {}
        facts: list[dict[str, Any]] = []
        for i, one in enumerate(block.weights):
            arrays[f"{i}.weight"] = np.asarray(jax.device_get(one.weight))
            arrays[f"{i}.mask"] = np.packbits(np.asarray(one.mask))
            fields = ("path", "layer", "sparsity", "error", "damping")
            facts.append({name: getattr(one, name) for name in fields})
        times = {"seconds": block.seconds, "elapsed": self.seconds()}
        story = {"number": block.number, "of": block.of, **times, "weights": facts}
        meta = {"block": json.dumps(story), "crc": str(_crc(story, arrays))}
        temporary = self._name(block.number).with_suffix(".part")
        save_file(arrays, str(temporary), meta)
        os.replace(temporary, self._name(block.number))

    def load(self, number: int) -> Block | None:
        """Read a block that was done before; None if there is none.

        Raises:
          ValueError: the file is damaged, or is not as it was written.
        """
        path = self._name(number)
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), framework="numpy") as file:
                story, crc = json.loads(file.metadata()["block"]), int(file.metadata()["crc"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if (crc, number) != (_crc(story, arrays), story["number"]):
                raise ValueError(_CHANGED)
            weights = [_pruned(arrays, i, facts) for i, facts in enumerate(story["weights"])]
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read ({error}). Delete it: the block is then pruned again."
            ) from error
        return Block(number, story["of"], tuple(weights), story["seconds"])

    def keep(self, name: str, numbers: Sequence[float]) -> None:
        """Write numbers that took time to find, whole or not at all."""
        content = {name: list(numbers), "crc": zlib.crc32(json.dumps(list(numbers)).encode())}
        _replace(self.blocks / f"{name}.json", json.dumps(content).encode())

    def kept(self, name: str) -> list[float] | None:
        """Read numbers that were kept; None if there are none.

        Raises:
          ValueError: the file is damaged, or is not as it was written.
        """
        path = self.blocks / f"{name}.json"
        if not path.is_file():
            return None
        content = read_json(path)
        numbers = content.get(name)
        if content.get("crc") != zlib.crc32(json.dumps(numbers).encode()):
            raise ValueError(
                f"{path} cannot be read ({_CHANGED}). Delete it: it is then computed again."
            )
        return numbers

    def finish(self, masks: Mapping[str, np.ndarray], report: Mapping[str, Any]) -> None:
        """Write masks and report, and delete the blocks, which the model now holds."""
        temporary = self.path / f"{MASKS}.part"
        save_file({k: v.astype(np.bool_) for k, v in masks.items()}, str(temporary))
        os.replace(temporary, self.path / MASKS)
        self.write(REPORT, report)  # from here on the run is finished
        shutil.rmtree(self.blocks)

    def _name(self, number: int) -> Path:
        return self.blocks / f"{number:05d}.safetensors"


def read_json(path: Path) -> Mapping[str, Any]:
    """Read what `Folder.write` wrote.

    Raises:
      ValueError: it is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}).") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} cannot be read (it holds no JSON object).")
    return found


def _settings(path: Path) -> Mapping[str, Any]:
    if not (path / RUN).is_file():
        raise ValueError(
            f"--out {path} holds files that are not of a run of jaxprune. Pass an empty folder."
        )
    return read_json(path / RUN)


def _different(before: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, before and now."""
    now = json.loads(json.dumps(run))
    return {k: (before.get(k), now[k]) for k in now if before.get(k) != now[k]}


def _crc(story: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> int:
    """Return the checksum of all that a block's file holds."""
    crc = zlib.crc32(json.dumps(story, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        crc = zlib.crc32(f"{name}{array.dtype}{array.shape}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), crc)
    return crc


def _elapsed(path: Path) -> float:
    """Return the time that a run had taken when it wrote a block; 0 if the file is damaged."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            return float(json.loads(file.metadata()["block"])["elapsed"])
    except (SafetensorError, KeyError, TypeError, ValueError):
        return 0.0  # `load` says what is wrong with it


def _pruned(arrays: Mapping[str, np.ndarray], i: int, facts: Mapping[str, Any]) -> PrunedWeight:
    weight = arrays[f"{i}.weight"]
    bits = np.unpackbits(arrays[f"{i}.mask"], count=weight.size)
    mask = bits.reshape(weight.shape).astype(bool)
    return PrunedWeight(weight=jax.numpy.asarray(weight), mask=jax.numpy.asarray(mask), **facts)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_bytes(content)
    os.replace(temporary, path)
