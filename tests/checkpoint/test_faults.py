"""Interrupted, damaged and foreign checkpoints: nothing good is lost, nothing bad is restored."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxprune.checkpoint import _folder, latest_step, restore, save
from tests.checkpoint import saver, states

ROOT = Path(__file__).resolve().parents[2]
LEFT = "a run killed here"


def at(step: int) -> dict[str, Any]:
    return {"a": np.full((4, 8), step, np.float32), "m": np.arange(9) < step}


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (_folder, "clear"),
        (Path, "mkdir"),
        (ocp.Checkpointer, "save"),
        (_folder, "commit"),
        (json, "dump"),
        (os, "fsync"),
        (os, "rename"),
        (_folder, "_flush"),
        (_folder, "remove_older"),
        (shutil, "rmtree"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_an_interruption_anywhere_leaves_a_good_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
):
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt(LEFT)

    save(tmp_path, 1, at(1), keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupt)
        with pytest.raises(KeyboardInterrupt, match=LEFT):
            save(tmp_path, 2, at(2), keep=1)
    step, got = restore(tmp_path, at(0))
    assert step in (1, 2)
    states.assert_equal(got, at(step))
    save(tmp_path, 3, at(3), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_run_killed_at_any_moment_goes_on(tmp_path: Path):
    chance, saved = random.Random(0), []
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.checkpoint.saver", str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as run:
            assert run.stdout is not None
            begun = [int(run.stdout.readline()) for _ in range(2)]
            time.sleep(chance.uniform(0.0, 0.2))
            run.kill()
            begun += map(int, run.stdout.read().split())
        step = latest_step(tmp_path)
        assert step in (begun[-1] - 1, begun[-1])
        saved.append(step)
        for intact in _folder.steps_in(tmp_path):
            _, got = restore(tmp_path, saver.state_at(0), step=intact)
            states.assert_equal(got, saver.state_at(intact))
        assert {step - 1, step} & set(_folder.steps_in(tmp_path)) == {step - 1, step} or step == 0
    assert saved == sorted(set(saved))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def largest(root: Path) -> Path:
    return max((p for p in root.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def spoil_manifest(text: str) -> Callable[[Path], Any]:
    return lambda root: (root / "manifest.json").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda root: cut(largest(root / "arrays")), "{file} has {less} of {size} bytes"),
        (lambda root: flip(largest(root / "arrays")), "the content of {file} has changed"),
        (lambda root: largest(root / "arrays").unlink(), "{file} is missing"),
        (
            lambda root: shutil.rmtree(root / "arrays"),
            "arrays/_CHECKPOINT_METADATA is missing",
        ),
        (lambda root: (root / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda root: cut(root / "manifest.json"), "manifest.json cannot be read"),
        (spoil_manifest("[]"), "manifest.json cannot be read"),
        (spoil_manifest("{}"), "manifest.json cannot be read"),
        (
            spoil_manifest('{"format": 9}'),
            "manifest.json has format 9, written by a newer jaxprune",
        ),
    ],
)
def test_a_damaged_step_is_named_and_so_is_the_last_good_one(
    tmp_path: Path, spoil: Callable[[Path], Any], found: str
):
    for step in (10, 20, 30):
        save(tmp_path, step, at(step), keep=3)
    file = largest(tmp_path / "30" / "arrays")
    size = file.stat().st_size
    found = found.format(
        file=file.relative_to(tmp_path / "30").as_posix(), size=size, less=size - 5
    )
    spoil(tmp_path / "30")
    (tmp_path / "20" / "manifest.json").unlink()
    before = states.snapshot(tmp_path)
    for step in (None, 30):
        with pytest.raises(ValueError) as error:
            restore(tmp_path, at(0), step=step)
        assert str(error.value) == (
            f"step 30 in {str(tmp_path)!r} is damaged: {found}. The last good step is 10: pass "
            "step=10."
        )
    assert states.snapshot(tmp_path) == before
    states.assert_equal(restore(tmp_path, at(0), step=10), (10, at(10)))


def test_no_good_step_is_left(tmp_path: Path):
    save(tmp_path, 1, at(1))
    (tmp_path / "1" / "manifest.json").unlink()
    with pytest.raises(ValueError) as error:
        restore(tmp_path, at(0))
    assert str(error.value) == (
        f"step 1 in {str(tmp_path)!r} is damaged: manifest.json is missing. No other step is "
        "intact: copy one back, or start anew."
    )


def test_a_damaged_step_does_not_count_as_kept(tmp_path: Path):
    save(tmp_path, 1, at(1))
    save(tmp_path, 2, at(2))
    cut(largest(tmp_path / "2" / "arrays"))
    save(tmp_path, 3, at(3))
    assert _folder.steps_in(tmp_path) == [1, 2, 3]


def test_nothing_is_overwritten(tmp_path: Path):
    save(tmp_path, 4, at(4))
    before = states.snapshot(tmp_path)
    with pytest.raises(FileExistsError) as error:
        save(tmp_path, 4, at(5))
    assert str(error.value) == (
        f"step 4 is in {str(tmp_path)!r} already, and a checkpoint is never overwritten. Save "
        "another step, remove that folder, or choose another directory."
    )
    assert states.snapshot(tmp_path) == before


def test_a_state_that_cannot_be_saved_changes_nothing(tmp_path: Path):
    save(tmp_path, 1, at(1), keep=1)
    before = states.snapshot(tmp_path)
    with pytest.raises(TypeError) as error:
        save(tmp_path, 2, at(2) | {"model": {"activation": np.tanh}}, keep=1)
    assert str(error.value) == (
        "a checkpoint holds arrays and numbers, but 'model/activation' is of type ufunc. Leave it "
        "out: split the arrays off, as with eqx.filter(model, eqx.is_array) or nnx.state(model)."
    )
    assert states.snapshot(tmp_path) == before
