"""IDX files: what is read, and what is refused with which words."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from experiments.data import idx
from experiments.data.dataset import SourceError
from tests.experiments.synthetic import IMAGES, LABELS, as_idx, idx_files, sums


def test_parse_reads_back_what_was_written() -> None:
    np.testing.assert_array_equal(idx.parse(as_idx(IMAGES), "images"), IMAGES)
    np.testing.assert_array_equal(idx.parse(as_idx(LABELS), "labels"), LABELS)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\x00\x00\x0d\x01", r"x is not an IDX file of bytes: it begins with b'\x00\x00\r\x01'"),
        (b"", "x is not an IDX file of bytes: it begins with b''"),
        (b"\x00\x00\x08\x03\x00\x00", "x ends within its header of 16 bytes"),
        (as_idx(LABELS)[:-1], "x says shape (12,), but holds 11 bytes"),
        (as_idx(LABELS) + b"\x00", "x says shape (12,), but holds 13 bytes"),
    ],
)
def test_parse_refuses_what_is_no_idx_file(content: bytes, text: str) -> None:
    with pytest.raises(SourceError) as caught:
        idx.parse(content, "x")
    assert str(caught.value) == text


def test_assemble_adds_the_channel_axis_and_casts_labels() -> None:
    files = idx_files()
    arrays = idx.assemble(files, sums(files))
    assert arrays.train_images.shape == (12, 4, 4, 1)
    assert arrays.train_images.dtype == np.uint8
    assert arrays.train_labels.dtype == np.int32
    np.testing.assert_array_equal(arrays.test_images[..., 0], IMAGES[:5])
    np.testing.assert_array_equal(arrays.test_labels, LABELS[:5])


def test_assemble_refuses_a_file_with_another_sha256() -> None:
    files = idx_files()
    expected = sums(files)
    files[idx.TEST_LABELS] = as_idx(LABELS[:5] * 0)
    found = hashlib.sha256(files[idx.TEST_LABELS]).hexdigest()
    with pytest.raises(SourceError) as caught:
        idx.assemble(files, expected)
    assert str(caught.value) == (
        f"t10k-labels-idx1-ubyte has sha256 {found}, but {expected[idx.TEST_LABELS]} was "
        "expected: refused"
    )


def test_read_file_takes_plain_and_packed_files(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"one")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(b"two"))
    assert idx.read_file(tmp_path, "plain") == b"one"
    assert idx.read_file(tmp_path, "packed") == b"two"
    with pytest.raises(SourceError, match=r"cannot read absent in .*: \[Errno 2\]"):
        idx.read_file(tmp_path, "absent")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"three" * 100)[:-9])
    with pytest.raises(SourceError, match="cannot read cut in"):
        idx.read_file(tmp_path, "cut")
