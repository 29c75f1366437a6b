"""The process that lets TFDS download: fails fast, and needs no TensorFlow."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds

from experiments.data import tfds_download


@pytest.mark.parametrize("channels", [1, 3])
def test_images_survive_encoding_without_tensorflow(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 6, channels), np.uint8)
    feature = tfds.features.Image(shape=image.shape, encoding_format="png")
    encoded = tfds_download.encode_with_pillow(feature._image_encoder, image)
    np.testing.assert_array_equal(feature.decode_example_np(encoded), image)


def test_an_unreachable_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def head(url: str, **options: Any) -> None:
        asked.update(options, url=url)
        raise requests.ConnectTimeout

    builder = types.SimpleNamespace(url_infos={"https://data.example.org/images.gz": None})
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: builder)
    monkeypatch.setattr(requests, "head", head)
    with pytest.raises(SystemExit) as caught:
        tfds_download.check("some", "somewhere")
    assert caught.value.code == "cannot reach data.example.org (ConnectTimeout)"
    assert asked["url"] == "https://data.example.org/images.gz"
    assert 0 < asked["timeout"] <= 10


def test_archives_are_unpacked_without_tensorflow(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from experiments.data import tfds_download\n"
        "from tensorflow_datasets.core.download import extractor\n"
        "tfds_download.do_without_tensorflow()\n"
        "extractor._copy(b'unpacked', sys.argv[1])\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    target = tmp_path / "file"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, str(target)], cwd=root, check=True)
    assert target.read_bytes() == b"unpacked"
