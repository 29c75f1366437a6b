"""TFDS datasets: ours come back as they were, others' are read in either record format."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.data import tfds_store
from experiments.data.dataset import Arrays, DamagedCacheError, SourceError, sha256_of
from tests.experiments.synthetic import ARRAYS


def test_prepared_arrays_come_back_in_their_order(tmp_path: Path) -> None:
    written = tfds_store.prepare("mnist", ARRAYS, source="a test", data_dir=tmp_path)
    read = tfds_store.read("mnist", tmp_path)
    for dataset in (written, read):
        for found, expected in zip(_arrays(dataset), ARRAYS, strict=True):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype
        assert dataset.source == "a test"
        assert dataset.sha256 == sha256_of(ARRAYS)
        assert dataset.num_classes == 10
    with pytest.raises(AttributeError):
        read.name = "other"


def test_every_builder_writes_under_its_name(tmp_path: Path) -> None:
    assert set(tfds_store.BUILDERS) == {"fashion_mnist", "mnist", "digits"}
    for name in tfds_store.BUILDERS:
        tfds_store.prepare(name, ARRAYS, source="a test", data_dir=tmp_path)
        assert (tmp_path / name / "1.0.0" / "features.json").exists()


def test_damage_is_noticed(tmp_path: Path) -> None:
    tfds_store.prepare("mnist", ARRAYS, source="a test", data_dir=tmp_path)
    folder = tmp_path / "mnist" / "1.0.0"
    (folder / "metadata.json").write_text(json.dumps({"source": "a test", "sha256": "0" * 64}))
    with pytest.raises(DamagedCacheError) as caught:
        tfds_store.read("mnist", tmp_path)
    assert str(caught.value) == (
        f"mnist in {folder} reads back with sha256 {sha256_of(ARRAYS)}, but was written with "
        f"{'0' * 64}: delete that folder and load again"
    )


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        tfds_store.read("mnist", tmp_path)
    assert str(caught.value) == f"no mnist prepared in {tmp_path}"


def test_tfrecords_are_read_without_tensorflow(tmp_path: Path) -> None:
    """TFDS writes TFRecord by default, and with TensorFlow alone; so the file is made by hand."""
    _other(tmp_path, ARRAYS, file_format="array_record")
    folder = tmp_path / "colours" / "2.0.0"
    for split in ("train", "test"):
        source = tfds.builder_from_directory(folder).as_data_source(split=split)
        (packed,) = folder.glob(f"colours-{split}.array_record*")
        plain = packed.with_name(packed.name.replace("array_record", "tfrecord"))
        plain.write_bytes(b"".join(map(_framed, _raw(source))))
        packed.unlink()
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    dataset = tfds_store.read("colours", tmp_path)
    for found, expected in zip(_arrays(dataset), ARRAYS, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert dataset.source == f"TFDS data in {folder}"

    train = next(folder.glob("colours-train.tfrecord*"))
    train.write_bytes(train.read_bytes()[:-3])
    with pytest.raises(SourceError, match="ends within a record: it is truncated"):
        tfds_store.read("colours", tmp_path)


def test_only_image_classification_with_two_splits_is_taken(tmp_path: Path) -> None:
    _other(tmp_path, ARRAYS, splits=("train", "extra"))
    with pytest.raises(SourceError) as caught:
        tfds_store.read("colours", tmp_path)
    assert str(caught.value) == (
        "colours has the splits ['extra', 'train']; 'train' and one of 'test', 'validation' are "
        "needed"
    )
    _other(tmp_path / "unlabelled", ARRAYS, supervised=False)
    with pytest.raises(SourceError) as caught:
        tfds_store.read("colours", tmp_path / "unlabelled")
    assert str(caught.value) == "colours is no image classification dataset: keys=None"


def test_tensorflow_is_never_imported(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from experiments.data import load\n"
        "digits = load('digits', cache_dir=sys.argv[1])\n"
        "assert digits.train_images.shape == (1498, 8, 8, 1)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, check=True)


class Colours(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset that someone else has prepared."""

    VERSION = tfds.core.Version("2.0.0")
    code_path = None

    def __init__(self, arrays: Arrays, splits: Any, supervised: bool, **kwargs: Any) -> None:
        self.arrays, self.splits, self.supervised = arrays, splits, supervised
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(shape=self.arrays.train_images.shape[1:], dtype=np.uint8)
        features = {"picture": image, "colour": tfds.features.ClassLabel(num_classes=10)}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("picture", "colour") if self.supervised else None,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> Any:
        del dl_manager
        train, test = self.splits
        return {
            train: self._generate_examples(*self.arrays[:2]),
            test: self._generate_examples(*self.arrays[2:]),
        }

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Any:
        for i in range(len(labels)):
            yield i, {"picture": images[i], "colour": int(labels[i])}


def _other(
    folder: Path,
    arrays: Arrays,
    *,
    splits: tuple[str, str] = ("train", "test"),
    supervised: bool = True,
    file_format: str = "array_record",
) -> None:
    builder = Colours(arrays, splits, supervised, data_dir=folder, file_format=file_format)
    builder.download_and_prepare()


def _arrays(dataset: Any) -> Arrays:
    return Arrays(
        dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels
    )


def _raw(source: Any) -> list[bytes]:
    return source.data_source.__getitems__(range(len(source)))


def _framed(record: bytes) -> bytes:
    return struct.pack("<Q", len(record)) + bytes(4) + record + bytes(4)
