"""Let TFDS download and prepare one dataset, in a process of its own.

    python tfds_download.py --check NAME DATA_DIR     can the first address be reached?
    python tfds_download.py NAME DATA_DIR             download and prepare

A process, because TFDS retries for minutes without a network and takes no time limit: the caller
stops the whole process instead. The last line on standard error is the reason of a failure.
"""

import argparse
import importlib.util
import sys
from typing import Any
from urllib.parse import urlsplit

import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.features import image_feature

_CONNECT_SECONDS = 5


def check(name: str, data_dir: str) -> None:
    """Ask for the head of the dataset's first address; honours proxies, as TFDS itself does."""
    builder = tfds.builder(name, data_dir=data_dir)
    url = next(iter(builder.url_infos), None)
    if url is not None and url.startswith("http"):
        try:
            requests.head(url, timeout=_CONNECT_SECONDS, allow_redirects=True)
        except requests.RequestException as error:
            sys.exit(f"cannot reach {urlsplit(url).hostname} ({type(error).__name__})")


def download(name: str, data_dir: str) -> None:
    """Prepare as ArrayRecord, which can be read without TensorFlow."""
    if importlib.util.find_spec("tensorflow") is None:
        setattr(image_feature._ImageEncoder, "_encode_image", _encode_with_pillow)  # noqa: B010
    tfds.disable_progress_bar()
    tfds.builder(name, data_dir=data_dir, file_format="array_record").download_and_prepare()


def _encode_with_pillow(encoder: Any, image: Any) -> bytes:
    """Write the PNG or JPEG that TFDS would have TensorFlow write."""
    from PIL import Image

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
