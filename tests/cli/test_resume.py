"""Runs that were cut short, and folders that hold something else."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from jaxprune.cli.folder import Folder
from jaxprune.posttraining import Block
from tests.cli import small


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    assert small.llm(home, home / "whole") == 0
    return home / "whole"


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the blocks that are pruned and written from here on."""
    numbers: list[int] = []
    save = Folder.save

    def noted(self: Folder, block: Block) -> None:
        save(self, block)
        numbers.append(block.number)

    monkeypatch.setattr(Folder, "save", noted)
    return numbers


@pytest.fixture(scope="module")
def cut(home: Path) -> Path:
    """A run that ended when its second block was pruned, and not yet written."""
    save = Folder.save

    def stopped(self: Folder, block: Block) -> None:
        if block.number == 1:
            self.blocks.joinpath("00001.part").write_bytes(b"half a blo")
            raise KeyboardInterrupt
        save(self, block)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "save", stopped)
        assert small.llm(home, home / "cut") == 130
    assert sorted(small.contents(home / "cut")) == [
        *("blocks/00000.safetensors", "blocks/00001.part", "run.json")
    ]
    return home / "cut"


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def same_but_for_time(one: Path, other: Path) -> bool:
    files = [small.contents(folder) for folder in (one, other)]
    reports = [small.report(folder) for folder in (one, other)]
    for held, report in zip(files, reports, strict=True):
        del held["report.json"]
        for part in (report, *report["blocks"]):
            del part["seconds"]
    return files[0] == files[1] and reports[0] == reports[1]


def test_an_interrupted_run_goes_on_to_the_same_bits(
    cut: Path, whole: Path, home: Path, tmp_path: Path, saved: list[int]
):
    out = copy(cut, tmp_path)
    assert small.llm(home, out, resume=True) == 0
    assert saved == [1, 2]
    assert same_but_for_time(out, whole)


@pytest.mark.slow  # three processes, each with its own compilation
def test_a_killed_run_goes_on_to_the_same_bits(home: Path, tmp_path: Path):
    program = (
        "import os, signal, sys\n"
        "from jaxprune.cli import main\n"
        "from jaxprune.cli.folder import Folder\n"
        "save = Folder.save\n"
        "def killed(self, block):\n"
        "    save(self, block)\n"
        "    if block.number == int(sys.argv[1]):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Folder.save = killed\n"
        "raise SystemExit(main(sys.argv[2:]))\n"
    )

    def ended(last: int, out: Path, *more: str) -> int:
        words = [sys.executable, "-c", program, str(last), *small.arguments(home, out), *more]
        return subprocess.run(words, capture_output=True, check=False, env=os.environ).returncode

    assert ended(99, tmp_path / "whole") == 0
    assert ended(1, tmp_path / "killed") == -signal.SIGKILL
    assert (tmp_path / "killed" / "blocks" / "00001.safetensors").is_file()
    assert ended(0, tmp_path / "killed", "--resume") == 0  # block 0 is not pruned again
    assert same_but_for_time(tmp_path / "killed", tmp_path / "whole")


def test_a_run_that_was_cut_short_while_it_wrote_the_results_goes_on(
    whole: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: list[int]
):
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "finish", lambda *a: (_ for _ in ()).throw(OSError("disk is full")))
        assert small.llm(home, tmp_path / "out") == 1
    assert small.llm(home, tmp_path / "out", resume=True) == 0
    assert saved == [0, 1, 2]
    assert same_but_for_time(tmp_path / "out", whole)


def test_a_finished_run_is_not_done_again(
    whole: Path, home: Path, saved: list[int], capsys: pytest.CaptureFixture[str]
):
    before = small.contents(whole)
    assert small.llm(home, whole, resume=True) == 0
    assert capsys.readouterr().out.startswith("The run is finished.\n")
    assert not saved
    assert small.contents(whole) == before


def test_a_run_without_a_block_gives_way(home: Path, tmp_path: Path):
    Folder(tmp_path, {"method": "another"}, resume=False)
    assert small.llm(home, tmp_path) == 0
    assert small.report(tmp_path)["method"] == "wanda"


def test_settings_beside_other_things_are_left_alone(home: Path, tmp_path: Path):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    before = small.contents(tmp_path)
    assert small.llm(home, tmp_path) == 1
    assert small.llm(home, tmp_path, resume=True) == 1
    assert small.contents(tmp_path) == before


@pytest.mark.parametrize("folder", ["cut", "whole"])
def test_a_run_is_only_replaced_when_told(
    folder: str, home: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
):
    out = request.getfixturevalue(folder)
    before = small.contents(out)
    capsys.readouterr()
    assert small.llm(home, out) == 1
    assert capsys.readouterr().err == (
        f"error: --out {out} holds a run. Pass --resume to go on with it, or another folder.\n"
    )
    assert small.contents(out) == before


def test_other_settings_are_named(cut: Path, home: Path, capsys: pytest.CaptureFixture[str]):
    before = small.contents(cut)
    assert small.llm(home, cut, resume=True, sparsity=0.6, seed=7) == 1
    assert capsys.readouterr().err == (
        f"error: --out {cut} holds a run with other settings (sparsity_asked: 0.5, now 0.6; "
        "seed: 0, now 7). Pass another folder, or the same settings.\n"
    )
    assert small.contents(cut) == before


def test_another_model_under_the_same_name_is_noticed(
    cut: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = small.write(tmp_path, seed=1)
    shutil.copy(home / "tokens.npz", other)
    shutil.move(home / "dense", home / "aside")
    try:
        shutil.copytree(other / "dense", home / "dense")
        assert small.llm(home, cut, resume=True) == 1
        assert f"error: --out {cut} holds a run with other settings (weights: '" in (
            capsys.readouterr().err
        )
    finally:
        shutil.rmtree(home / "dense")
        shutil.move(home / "aside", home / "dense")


@pytest.mark.parametrize("content", [b"", b"\x08" + bytes(30), None], ids=["empty", "junk", "half"])
def test_a_damaged_block_is_named(
    content: bytes | None,
    cut: Path,
    home: Path,
    tmp_path: Path,
    saved: list[int],
    capsys: pytest.CaptureFixture[str],
):
    out = copy(cut, tmp_path)
    block = out / "blocks" / "00000.safetensors"
    whole = block.read_bytes()
    block.write_bytes(whole[: len(whole) // 2] if content is None else content)
    before = small.contents(out)
    assert small.llm(home, out, resume=True) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {block} cannot be read (")
    assert message.endswith("). Delete it: the block is then pruned again.\n")
    assert small.contents(out) == before
    if content is None:
        block.unlink()
        assert small.llm(home, out, resume=True) == 0
        assert saved == [0, 1, 2]


@pytest.mark.parametrize("what", ["weight", "sparsity"])
def test_a_block_that_has_changed_is_named(
    what: str, cut: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = copy(cut, tmp_path)
    block = out / "blocks" / "00000.safetensors"
    content = bytearray(block.read_bytes())
    if what == "weight":
        content[-5] ^= 1  # one bit of the data, the last of which are a mask
    else:
        at = content.index(b'sparsity\\": 0.5') + len(b'sparsity\\": 0.')
        content[at] ^= 1  # of what is told of a weight: 0.5 is now 0.4
    block.write_bytes(content)
    before = small.contents(out)
    assert small.llm(home, out, resume=True) == 1
    assert capsys.readouterr().err == (
        f"error: {block} cannot be read (its content has changed since it was written). Delete "
        "it: the block is then pruned again.\n"
    )
    assert small.contents(out) == before


def test_a_block_in_the_place_of_another_is_named(tmp_path: Path):
    folder = Folder(tmp_path, {"method": "wanda"}, resume=False)
    folder.save(empty(0))
    blocks = tmp_path / "blocks"
    (blocks / "00000.safetensors").rename(blocks / "00001.safetensors")
    with pytest.raises(ValueError, match=r"00001.safetensors cannot be read \(its content has"):
        folder.load(1)


def empty(number: int) -> Block:
    """A block without weights."""
    return Block(number, 3, (), 1.0)


def test_the_time_of_all_sessions_adds_up(tmp_path: Path):
    run, now = {"method": "wanda"}, time.perf_counter()
    first = Folder(tmp_path, run, resume=False, start=now - 100)
    first.save(empty(0))
    second = Folder(tmp_path, run, resume=True, start=now - 20)
    assert second.load(0) == empty(0)
    second.save(empty(1))
    (tmp_path / "blocks" / "00002.safetensors").write_bytes(b"")  # has nothing to tell
    third = Folder(tmp_path, run, resume=True)
    assert 120 < third.seconds() < 130


def test_numbers_are_kept_for_the_same_run(tmp_path: Path):
    run, shares = {"allocation": "ecoflap"}, [0.1, 1 / 3, 0.55]
    folder = Folder(tmp_path, run, resume=False)
    assert folder.kept("shares") is None
    folder.keep("shares", shares)
    assert Folder(tmp_path, run, resume=False).kept("shares") == shares
    file = tmp_path / "blocks" / "shares.json"
    file.write_text(file.read_text().replace("0.55", "0.56"))
    with pytest.raises(ValueError) as caught:
        folder.kept("shares")
    assert str(caught.value) == (
        f"{file} cannot be read (its content has changed since it was written). Delete it: it is "
        "then computed again."
    )
    assert Folder(tmp_path, {"allocation": "owl"}, resume=False).kept("shares") is None


@pytest.mark.slow  # compiles the loss, and magnitude for four shapes
def test_an_interrupted_allocation_goes_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = {"method": "magnitude", "allocation": "ecoflap"}
    assert small.llm(home, tmp_path / "whole", **options) == 0
    keep = Folder.keep
    kept: list[int] = []

    def stopped(self: Folder, name: str, numbers: Sequence[float]) -> None:
        keep(self, name, numbers)
        kept.append(len(numbers))
        if len(kept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Folder, "keep", stopped)
    assert small.llm(home, tmp_path / "cut", **options) == 130
    assert small.llm(home, tmp_path / "cut", **options, resume=True) == 0
    assert kept == [1, 2, 3, 3]  # scores of each block, then shares of all
    assert same_but_for_time(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("resume", [{}, {"resume": True}], ids=["new", "resume"])
def test_a_folder_of_other_things_is_left_alone(
    resume: dict[str, bool], home: Path, capsys: pytest.CaptureFixture[str]
):
    out = home / "dense"
    before = small.contents(out)
    assert small.llm(home, out, **resume) == 1
    assert capsys.readouterr().err == (
        f"error: --out {out} holds files that are not of a run of jaxprune. Pass an empty folder.\n"
    )
    assert small.contents(out) == before


def test_a_file_is_no_folder(home: Path, capsys: pytest.CaptureFixture[str]):
    out = home / "tokens.npz"
    assert small.llm(home, out) == 1
    assert capsys.readouterr().err == f"error: --out {out} is a file. Pass a folder.\n"


def test_settings_that_cannot_be_read(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "run.json").write_text("[1]")
    assert small.llm(home, tmp_path, resume=True) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/run.json cannot be read (it holds no JSON object).\n"
    )
