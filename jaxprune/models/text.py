"""From text to tokens: the tokenizer of a model, line wrapping, and calibration windows."""

import importlib
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxprune.models import gguf

_CONTROL = 3  # GGUF's number of a token that no text produces
_INSTALL = "install it with `pip install jaxprune[text]`"


class Tokenizer(Protocol):
    """What is used here of the ``tokenizers`` library's class of this name."""

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Any:
        """Cut a text into tokens: ``.ids`` of what is returned."""
        ...

    def decode(self, ids: Any) -> str:
        """Join tokens to a text."""
        ...

    def save(self, path: str) -> None:
        """Write a ``tokenizer.json``."""
        ...


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read the tokenizer of a model, as an object of the ``tokenizers`` library.

    Args:
      path: of a folder with ``tokenizer.json``, or of the ``.gguf`` file of SmolLM2.

    Returns:
      The tokenizer: ``encode(text).ids`` and ``decode(ids)``.

    Raises:
      ImportError: if the library ``tokenizers`` is not installed.
      FileNotFoundError: if the folder has no ``tokenizer.json``.
      ValueError: if the file's tokenizer is of another kind than SmolLM2's.

    Example:
      >>> from jaxprune import models
      >>> tokenizer = models.load_tokenizer(models.fetch_smollm2())  # doctest: +SKIP
      >>> tokenizer.encode("It's 2024").ids  # doctest: +SKIP
      [1589, 506, 216, 34, 32, 34, 36]
    """
    library = _library()
    path = Path(path)
    if path.suffix == ".gguf":
        return _from_gguf(library, gguf.open_file(path))
    if not (path / "tokenizer.json").exists():
        raise FileNotFoundError(
            f"{path} holds no tokenizer.json; copy it from the model's original folder."
        )
    return library.Tokenizer.from_file(str(path / "tokenizer.json"))


def tokenize(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Return the tokens of a text, without one that opens or ends it.

    Args:
      tokenizer: from ``load_tokenizer``.
      text: to be cut into tokens.

    Returns:
      int32 (tokens,).

    Raises:
      ValueError: if the text is empty.

    Example:
      >>> from jaxprune import models
      >>> tokenizer = models.load_tokenizer(models.fetch_smollm2())  # doctest: +SKIP
      >>> models.tokenize(tokenizer, "It's 2024").shape  # doctest: +SKIP
      (7,)
    """
    if not text.strip():
        raise ValueError(f"text has {len(text)} characters and no word; pass real text.")
    return np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def unwrap(text: str) -> str:
    r"""Join the lines of each paragraph, and leave one empty line between paragraphs.

    Line wrapping alone moves a model's perplexity by a fifth, so figures are only comparable on
    texts that were prepared alike.

    Args:
      text: with lines broken at some width.

    Returns:
      The text with one line per paragraph.

    Example:
      >>> from jaxprune import models
      >>> models.unwrap("It is a\ntruth.\n\n\nHowever\nlittle")
      'It is a truth.\n\nHowever little'
    """
    return re.sub(r"\n{2,}", "\n\n", re.sub(r"(?<!\n)\n(?!\n)", " ", text))


def even_windows(tokens: np.ndarray, *, count: int, length: int) -> np.ndarray:
    """Cut windows that start at even distances: the i-th at ``floor(i (n − length) / count)``.

    Args:
      tokens: integers (n,).
      count: number of windows.
      length: of each, in tokens.

    Returns:
      Integers (count, length), in the order of the text. They overlap if the text is short.

    Raises:
      ValueError: if the text is shorter than one window.

    Example:
      >>> import numpy as np
      >>> from jaxprune import models
      >>> models.even_windows(np.arange(10), count=3, length=4)
      array([[0, 1, 2, 3],
             [2, 3, 4, 5],
             [4, 5, 6, 7]])
    """
    if count < 1 or length < 1:
        raise ValueError(f"count={count} and length={length} have to be at least 1.")
    if len(tokens) < length:
        raise ValueError(
            f"tokens are {len(tokens)}, fewer than one window of {length}; pass a longer text or "
            "shorter windows."
        )
    starts = [i * (len(tokens) - length) // count for i in range(count)]
    return np.stack([tokens[start : start + length] for start in starts])


def _library() -> Any:
    try:
        return importlib.import_module("tokenizers")  # optional: only text needs it
    except ImportError as error:
        raise ImportError(
            f"tokenizers, which cuts text into tokens, is missing; {_INSTALL}."
        ) from error


def _from_gguf(library: Any, file: gguf.File) -> Tokenizer:
    meta = file.metadata
    kind = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise ValueError(
            f"{file.path} has a tokenizer of kind {kind}; only SmolLM2's, ('gpt2', 'smollm'), is "
            "read from a GGUF file. Pass a folder with tokenizer.json."
        )
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    made = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=merges))
    split = library.pre_tokenizers
    # Digits one by one, then as GPT-2 does.
    made.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = library.decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    made.add_special_tokens(
        [library.AddedToken(t, special=True, normalized=False) for t in control]
    )
    return made
