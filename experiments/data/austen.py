"""Jane Austen's six novels, from the Debian package of the R package `janeaustenr`, without R.

The package holds them as a lazy-load database: an index that says where each object lies in a file
of compressed ones, all in the format that R's `serialize` writes.
"""

import gzip
import json
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.data import idx, packages
from experiments.data.dataset import DamagedCacheError, SourceError

DEBIAN_PACKAGE = "r-cran-janeaustenr"
DEBIAN_FOLDER = Path("/usr/lib/R/site-library/janeaustenr/data")  # where the package puts its files

# sha256 of the texts in UTF-8, lines joined by a newline: a package that is built anew may
# compress them in another way.
NOVELS = {
    "emma": "dd08b340a56ad4a0a00718d5682528a5a5886ae0aef91c9e0fa528074fa64b75",
    "mansfieldpark": "e0e9ef3863ea77f51f6070062ee0dd50ad9b933223880617629e4e4963ea40ff",
    "northangerabbey": "8618a5acf5be50cc6e9b7680c7469fb6012649ab08c709dfc63c6367989fd31d",
    "persuasion": "726513a6c18bb678427bcbcf7c72d0d20816a67c25b0471b26ddcabf3ebac140",
    "prideprejudice": "2e44edaa4946d64ad541c68e0224f5d672f43bf3ce2a8a0b0637ad5e02fc6eb3",
    "sensesensibility": "0996d90842bbe8093f3b8142c1e77d1b20cff52d1d0615f3ed67733653e74e26",
}

# Types of R objects, and the flags beside them, as in R's Rinternals.h and serialize.c.
_SYMBOL, _PAIRLIST, _CHAR, _LOGICAL, _INTEGER, _STRINGS, _LIST = 1, 2, 9, 10, 13, 16, 19
_NULL, _REFERENCE = 254, 255
_HAS_ATTRIBUTES, _HAS_TAG = 0x200, 0x400


def load_novels(
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    installed: Path = DEBIAN_FOLDER,
    expected: Mapping[str, str] = NOVELS,
) -> dict[str, str]:
    """Return the text of each novel; fetched once, then kept in the cache.

    Args:
        cache_dir: Where they are kept. `$XDG_CACHE_HOME/jaxprune`, or `~/.cache/jaxprune`, by
            default.
        installed: The package's data, if it is installed; otherwise it is downloaded and unpacked.
        expected: sha256 of each novel.

    Raises:
        SourceError: The package cannot be had, or holds other texts.
        DamagedCacheError: The cache reads back different.
    """
    from experiments.data.sources import default_cache_dir  # needs TFDS, which text does not

    folder = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    file = folder / "austen" / "novels.json"
    if file.exists():
        return _from_cache(file, expected)
    novels = _verified(debian_novels(installed=installed), expected)
    _write(file, json.dumps(novels))
    return novels


def debian_novels(*, installed: Path = DEBIAN_FOLDER) -> dict[str, str]:
    """Read the novels from the Debian package: installed, or else downloaded and unpacked."""
    with packages.debian_folder(DEBIAN_PACKAGE, installed) as folder:
        return _read_database(folder)


def _from_cache(file: Path, expected: Mapping[str, str]) -> dict[str, str]:
    try:
        return _verified(json.loads(file.read_text("utf-8")), expected)
    except (SourceError, ValueError, AttributeError) as error:
        raise DamagedCacheError(f"{file} is damaged ({error}): delete it and load again") from error


def _verified(novels: Mapping[str, str], expected: Mapping[str, str]) -> dict[str, str]:
    missing = [name for name in expected if name not in novels]
    if missing:
        raise SourceError(f"there is no {', '.join(missing)} among {', '.join(novels) or 'none'}")
    for name, digest in expected.items():
        idx.verify(novels[name].encode(), digest, name)
    return {name: novels[name] for name in expected}


def _write(file: Path, text: str) -> None:
    """Write as a whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(file)


def _read_database(folder: Path) -> dict[str, str]:
    """Read every object of a lazy-load database as lines of text."""
    try:
        index = unserialize(_decompressed((folder / "Rdata.rdx").read_bytes()))
        content = (folder / "Rdata.rdb").read_bytes()
        places: Mapping[str, Any] = index["variables"]
        # Each begins with its length when decompressed, of four bytes.
        chunks = {name: content[at + 4 : at + size] for name, (at, size) in places.items()}
        objects = {name: unserialize(zlib.decompress(chunk)) for name, chunk in chunks.items()}
        return {name: "\n".join(lines) for name, lines in objects.items()}
    except (
        OSError,
        EOFError,
        zlib.error,
        struct.error,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise SourceError(f"cannot read {folder}: {type(error).__name__}: {error}") from error


def _decompressed(content: bytes) -> bytes:
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else zlib.decompress(content)


def unserialize(content: bytes) -> Any:
    """Read what R's `serialize` wrote in its portable form: lists, and vectors of text or integers.

    A list with names becomes a dict; NULL becomes None.
    """
    if content[:2] != b"X\n":
        raise ValueError(f"R's portable form begins with b'X\\n', this with {content[:2]!r}")
    reader = _Reader(content, 2)
    version, *_ = reader.integers(3)
    if version >= 3:
        reader.take(*reader.integers(1))  # the name of the native encoding
    return reader.item()


class _Reader:
    """A position in serialized content, and the symbols met so far, to which it may refer."""

    def __init__(self, content: bytes, position: int) -> None:
        self.content, self.position = content, position
        self.symbols: list[Any] = []
        self.readers: Mapping[int, Callable[[], Any]] = {
            _CHAR: self._char,
            _LOGICAL: lambda: self.integers(*self.integers(1)),
            _INTEGER: lambda: self.integers(*self.integers(1)),
            _STRINGS: lambda: [self.item() for _ in range(*self.integers(1))],
            _LIST: lambda: [self.item() for _ in range(*self.integers(1))],
            _SYMBOL: self._symbol,
            _NULL: lambda: None,
        }

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        taken = self.content[self.position : self.position + size]
        if len(taken) != size:
            raise ValueError("the content ends within an object")
        self.position += size
        return taken

    def integers(self, count: int) -> list[int]:
        """Return the next integers, of four bytes each."""
        return list(struct.unpack(f">{count}i", self.take(4 * count)))

    def item(self) -> Any:
        """Read one object, with all that it holds."""
        (flags,) = self.integers(1)
        kind = flags & 0xFF
        if kind == _REFERENCE:
            return self.symbols[(flags >> 8) - 1 if flags >> 8 else self.integers(1)[0] - 1]
        if kind == _PAIRLIST:
            return self._pairs(flags)
        if kind not in self.readers:
            raise ValueError(f"R objects of type {kind} are not read")
        value = self.readers[kind]()
        if kind != _CHAR and flags & _HAS_ATTRIBUTES:
            names = self.item().get("names")
            return value if names is None else dict(zip(names, value, strict=True))
        return value

    def _char(self) -> str | None:
        (size,) = self.integers(1)
        return None if size == -1 else self.take(size).decode()

    def _symbol(self) -> Any:
        self.symbols.append(self.item())
        return self.symbols[-1]

    def _pairs(self, flags: int) -> dict[str, Any]:
        """Read a pairlist, which is what attributes are."""
        pairs: dict[str, Any] = {}
        while flags & 0xFF == _PAIRLIST:
            if flags & _HAS_ATTRIBUTES:
                self.item()
            name = self.item() if flags & _HAS_TAG else str(len(pairs))
            pairs[name] = self.item()
            (flags,) = self.integers(1)
        return pairs
