"""Datasets as TFDS keeps them: ours written and read, TFDS's own read; TensorFlow never needed.

TFDS encodes a `features.Image` and reads its default record format with TensorFlow. Our builders
therefore declare a `features.Tensor` and write ArrayRecord, and `_tfrecords` reads the default
format of what others have prepared.
"""

import contextlib
import io
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, read_only_builder

from experiments.data.dataset import Arrays, DamagedCacheError, Dataset, SourceError, sha256_of

Builder: TypeAlias = Any  # a tfds.core.DatasetBuilder, whose annotations are wider than its values


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Ask no network: TFDS's bucket holds nothing about our versions of the data."""


class _ArraysBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes arrays in memory as a TFDS dataset. Needs a subclass that gives the name."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # TFDS looks for a table of downloads beside it: there are none

    def __init__(self, arrays: Arrays, *, source: str, data_dir: Path) -> None:
        self._arrays = arrays
        # Travels in the dataset's own folder, which TFDS moves into place in one step.
        self._origin = {"source": source, "sha256": sha256_of(arrays)}
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        shape = self._arrays.train_images.shape[1:]
        num_classes = int(self._arrays.train_labels.max()) + 1
        return _Info(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=shape, dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=num_classes),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # the order of the source, so that its sha256 holds
            metadata=tfds.core.MetadataDict(self._origin),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
        del dl_manager  # the arrays are here already
        train_images, train_labels, test_images, test_labels = self._arrays
        return {
            "train": self._generate_examples(train_images, train_labels),
            "test": self._generate_examples(test_images, test_labels),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, Any]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image, "label": int(label)}


class FashionMnist(_ArraysBuilder, skip_registration=True):
    """Zalando's articles: 60,000 + 10,000 images, 28 x 28 x 1, 10 classes."""

    name = "fashion_mnist"


class Mnist(_ArraysBuilder, skip_registration=True):
    """Handwritten digits: 60,000 + 10,000 images, 28 x 28 x 1, 10 classes."""

    name = "mnist"


class Digits(_ArraysBuilder, skip_registration=True):
    """scikit-learn's handwritten digits: 1,498 + 299 images, 8 x 8 x 1, 10 classes."""

    name = "digits"


BUILDERS: dict[str, type[_ArraysBuilder]] = {b.name: b for b in (FashionMnist, Mnist, Digits)}


def prepare(name: str, arrays: Arrays, *, source: str, data_dir: Path) -> Dataset:
    """Write arrays as the TFDS dataset `name` under `data_dir`, and read it back."""
    builder = BUILDERS[name](arrays, source=source, data_dir=data_dir)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces each step
        builder.download_and_prepare()
    return read(name, data_dir)


def read(name: str, data_dir: Path | None) -> Dataset:
    """Read a prepared TFDS dataset, ours or another's; `None` is TFDS's default folder."""
    try:
        builder: Builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
    except ValueError as error:  # DatasetNotFoundError, or a name that TFDS cannot parse
        raise SourceError(f"no {name} prepared in {data_dir or tfds_default_dir()}") from error
    arrays = _read_arrays(builder)
    digest = sha256_of(arrays)
    origin = builder.info.metadata or {}
    if origin.get("sha256", digest) != digest:
        raise DamagedCacheError(
            f"{name} in {builder.data_path} reads back with sha256 {digest}, but was written with "
            f"{origin['sha256']}: delete that folder and load again"
        )
    source = origin.get("source", f"TFDS data in {builder.data_path}")
    classes = builder.info.features[builder.info.supervised_keys[1]].num_classes
    return Dataset(name, *arrays, num_classes=classes, source=source, sha256=digest)


def tfds_default_dir() -> str:
    """Return where TFDS keeps its data unless told otherwise."""
    return str(constants.DATA_DIR)


def _read_arrays(builder: Builder) -> Arrays:
    keys = builder.info.supervised_keys
    if not keys or not _is_image_classification(builder.info.features, keys):
        raise SourceError(f"{builder.name} is no image classification dataset: {keys=}")
    test = next((s for s in ("test", "validation") if s in builder.info.splits), None)
    if "train" not in builder.info.splits or test is None:
        raise SourceError(
            f"{builder.name} has the splits {sorted(builder.info.splits)}; "
            "'train' and one of 'test', 'validation' are needed"
        )
    return Arrays(*_read_split(builder, "train"), *_read_split(builder, test))


def _is_image_classification(features: Any, keys: tuple[str, str]) -> bool:
    image, label = features[keys[0]], features[keys[1]]
    return isinstance(label, tfds.features.ClassLabel) and (
        len(image.shape) == 3 and np.dtype(image.np_dtype) == np.uint8
    )


def _read_split(builder: Builder, split: str) -> tuple[np.ndarray, np.ndarray]:
    image_key, label_key = builder.info.supervised_keys
    images, labels = [], []
    for example in _examples(builder, split):
        images.append(example[image_key])
        labels.append(example[label_key])
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise SourceError(
            f"{builder.name} has images of {len(shapes)} different sizes in {split!r}; "
            "choose a dataset whose images have one size"
        )
    return np.stack(images), np.asarray(labels, np.int32)


def _examples(builder: Builder, split: str) -> Iterable[dict[str, Any]]:
    if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
        decode = builder.info.features.deserialize_example_np
        files = builder.info.splits[split].filepaths
        return (decode(record) for file in files for record in _tfrecords(Path(file)))
    source = builder.as_data_source(split=split)
    return source.__getitems__(range(len(source)))  # one by one takes ten times as long


def _tfrecords(path: Path) -> Iterator[bytes]:
    """Yield the records of a TFRecord file: length (8), crc (4), data, crc (4)."""
    content = path.read_bytes()
    at = 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield content[at + 12 : at + 12 + length]
        at += 16 + length
    if at != len(content):
        raise SourceError(f"{path} ends within a record: it is truncated")
