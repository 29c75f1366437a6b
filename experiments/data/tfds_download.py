"""Let TFDS download and prepare one dataset, in a process of its own.

    python tfds_download.py --check NAME DATA_DIR     can the first address be reached?
    python tfds_download.py NAME DATA_DIR             download and prepare

A process, because TFDS retries for minutes without a network and takes no time limit: the caller
stops the whole process instead. The last line on standard error is the reason of a failure.
"""

import argparse
import importlib.util
import sys
import types
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.features import image_feature
from tensorflow_datasets.core.utils import lazy_imports_utils

_CONNECT_SECONDS = 5


def check(name: str, data_dir: str) -> None:
    """Ask for the head of the dataset's first address; honours proxies, as TFDS itself does."""
    builder = tfds.builder(name, data_dir=data_dir)
    url = next(iter(builder.url_infos or ()), None)
    if url is not None and url.startswith("http"):
        try:
            requests.head(url, timeout=_CONNECT_SECONDS, allow_redirects=True)
        except requests.RequestException as error:
            sys.exit(f"cannot reach {urlsplit(url).hostname} ({type(error).__name__})")


def download(name: str, data_dir: str) -> None:
    """Prepare as ArrayRecord, which can be read without TensorFlow."""
    if importlib.util.find_spec("tensorflow") is None:
        do_without_tensorflow()
    tfds.disable_progress_bar()
    tfds.builder(name, data_dir=data_dir, file_format="array_record").download_and_prepare()


def do_without_tensorflow() -> None:
    """Stand in for the little that TFDS has TensorFlow do: open files, and write PNG and JPEG.

    A dataset that needs more fails with an AttributeError that names what is missing.
    """
    stand_in = types.ModuleType("tensorflow")
    stand_in.__dict__["io"] = types.SimpleNamespace(gfile=types.SimpleNamespace(GFile=open))
    stand_in.__dict__["compat"] = types.SimpleNamespace(as_text=str)
    # What TFDS's modules call `tf` imports TensorFlow when an attribute is first asked for; it
    # keeps the module here. In sys.modules it would be seen, and trusted, by others.
    lazy: Any = lazy_imports_utils.tensorflow
    lazy.__dict__["_module"] = stand_in
    setattr(image_feature._ImageEncoder, "_encode_image", encode_with_pillow)  # noqa: B010


def encode_with_pillow(encoder: Any, image: np.ndarray) -> bytes:
    """Write an array [H, W, C] uint8 as TFDS would have TensorFlow write it."""
    from PIL import Image  # only images that come as arrays need it

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return encoder._encode_pil_image(picture)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("name")
    parser.add_argument("data_dir")
    args = parser.parse_args()
    try:
        (check if args.check else download)(args.name, args.data_dir)
    except Exception as error:  # whatever it is, its text is what the caller shows
        text = (str(error).strip() or "no text").splitlines()[0]
        sys.exit(f"{type(error).__name__}: {text[:300]}")


if __name__ == "__main__":
    main()
