"""Austen's novels: R's format is read, and only the right texts are accepted."""

import gzip
import hashlib
import json
import stat
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from experiments.data import austen
from experiments.data.dataset import DamagedCacheError, SourceError

LINES = {"emma": ["Emma", "", "by Jane"], "persuasion": ["Persuasion: naïve", "Sir Walter"]}
TEXTS = {name: "\n".join(lines) for name, lines in LINES.items()}
SUMS = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in TEXTS.items()}
ABSENT = Path("/absent/janeaustenr/data")


def header() -> bytes:
    """As R 4 writes it: version 3 of the portable form, in UTF-8."""
    return b"X\n" + struct.pack(">4i", 3, 0x040201, 0x030500, 5) + b"UTF-8"


def char(text: str) -> bytes:
    content = text.encode()
    return struct.pack(">2i", 0x40009, len(content)) + content


def strings(lines: list[str]) -> bytes:
    return struct.pack(">2i", 16, len(lines)) + b"".join(map(char, lines))


def named(items: Mapping[str, bytes], symbol: bytes) -> bytes:
    """A list whose attributes are a pairlist that holds its names."""
    names = struct.pack(">i", 0x402) + symbol + strings([*items]) + struct.pack(">i", 0xFE)
    return struct.pack(">2i", 0x213, len(items)) + b"".join(items.values()) + names


def database(folder: Path, lines: Mapping[str, list[str]]) -> Path:
    """Write a lazy-load database of character vectors."""
    folder.mkdir(parents=True, exist_ok=True)
    content, places = b"", {}
    for name, text in lines.items():
        packed = zlib.compress(header() + strings(text))
        places[name] = struct.pack(">4i", 13, 2, len(content), 4 + len(packed))
        content += struct.pack(">i", len(packed)) + packed
    symbol, again = struct.pack(">i", 1) + char("names"), struct.pack(">i", 0x1FF)
    index = named({"variables": named(places, symbol), "references": named({}, again)}, again)
    (folder / "Rdata.rdb").write_bytes(content)
    (folder / "Rdata.rdx").write_bytes(gzip.compress(header() + index))
    return folder


def test_the_database_of_an_installed_package_is_read(tmp_path: Path) -> None:
    folder = database(tmp_path / "data", LINES)
    found = austen.load_novels(cache_dir=tmp_path, installed=folder, expected=SUMS)
    assert found == TEXTS


def test_a_second_load_reads_the_cache(tmp_path: Path) -> None:
    folder = database(tmp_path / "data", LINES)
    austen.load_novels(cache_dir=tmp_path, installed=folder, expected=SUMS)
    again = austen.load_novels(cache_dir=tmp_path, installed=ABSENT, expected=SUMS)
    assert again == TEXTS


def test_other_texts_are_refused_and_not_kept(tmp_path: Path) -> None:
    folder = database(tmp_path / "data", {**LINES, "persuasion": ["Sense"]})
    with pytest.raises(SourceError) as caught:
        austen.load_novels(cache_dir=tmp_path, installed=folder, expected=SUMS)
    found = hashlib.sha256(b"Sense").hexdigest()
    assert str(caught.value) == (
        f"persuasion has sha256 {found}, but {SUMS['persuasion']} was expected: refused"
    )
    assert not (tmp_path / "austen").exists()


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    folder = database(tmp_path / "data", LINES)
    austen.load_novels(cache_dir=tmp_path, installed=folder, expected=SUMS)
    file = tmp_path / "austen" / "novels.json"
    file.write_text(json.dumps({**TEXTS, "emma": "Emm"}))
    with pytest.raises(
        DamagedCacheError, match=r"novels\.json is damaged \(emma has sha256 .*load"
    ):
        austen.load_novels(cache_dir=tmp_path, installed=folder, expected=SUMS)


def test_a_missing_novel_is_named(tmp_path: Path) -> None:
    folder = database(tmp_path / "data", {"emma": LINES["emma"]})
    with pytest.raises(SourceError, match="there is no persuasion among emma"):
        austen.load_novels(cache_dir=tmp_path, installed=folder, expected=SUMS)


def test_a_cut_database_is_refused(tmp_path: Path) -> None:
    folder = database(tmp_path / "data", LINES)
    file = folder / "Rdata.rdb"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(SourceError, match=r"cannot read .*data: error: .*incomplete"):
        austen.debian_novels(installed=folder)


def test_what_is_not_read_is_named() -> None:
    with pytest.raises(ValueError, match="R objects of type 14 are not read"):
        austen.unserialize(header() + struct.pack(">2i", 14, 0))
    with pytest.raises(ValueError, match=r"portable form begins with b'X\\n', this with b'A\\n'"):
        austen.unserialize(b"A\n")


def test_the_package_is_downloaded_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = database(tmp_path / "source", LINES)
    scripts = {
        "apt-get": 'echo deb > "$PWD/novels.deb"',
        "dpkg": f'/bin/mkdir -p "$3/absent/janeaustenr"; /bin/cp -r {folder} "$3{ABSENT}"',
    }
    for name, script in scripts.items():
        command = tmp_path / name
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert austen.debian_novels(installed=ABSENT) == TEXTS


def test_the_reason_of_a_failed_download_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError) as caught:
        austen.load_novels(cache_dir=tmp_path, installed=ABSENT)
    assert str(caught.value) == "this machine has no `apt-get`"
