"""Texts and token files as windows of tokens."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune import models
from jaxprune.models import LlamaConfig


def windows(
    path: Path,
    key: str,
    config: LlamaConfig,
    model: Path,
    *,
    length: int,
    count: int | None = None,
    default: int | None = None,
    seed: int | None = None,
) -> np.ndarray:
    """Read windows of tokens from a file.

    Args:
      path: a text, or an ``.npz`` with an array ``key``: windows (windows, tokens), or a row of
        tokens that is cut like a text.
      key: ``calib``, ``general`` or ``eval``.
      config: of the model, for its vocabulary.
      model: path of the model, for its tokenizer.
      length: of a window cut from a text or a row, in tokens.
      count: how many windows, the first ones if they are stored; None for ``default`` or all.
      default: how many windows are cut, spread over the text; None for all, one after the other.
      seed: cut at random places; None for even distances.

    Returns:
      int32 (windows, tokens).

    Raises:
      OSError: there is no such file.
      ValueError: another kind of file, too few tokens, or tokens outside the vocabulary.
    """
    if not path.is_file():
        raise OSError(f"{_option(key)} {path} is not a file. Pass a text or an .npz of token ids.")
    tokens = _stored(path, key) if path.suffix == ".npz" else _read(path, key, model)
    _check_vocabulary(tokens, config, key, path)
    if length < 2:
        raise ValueError(f"--length must be 2 or more, got {length}: the first token is given.")
    if count is not None and count < 1:
        raise ValueError(f"--samples must be 1 or more, got {count}.")
    if tokens.ndim == 2:
        found = _first(tokens, count, key, path)
    else:
        found = _cut(tokens, key, path, default if count is None else count, length, seed)
    if found.shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"{_option(key)} {path} has windows of {found.shape[1]} tokens; the model takes at "
            f"most {config.max_position_embeddings}. Pass a smaller --length."
        )
    return np.asarray(found, np.int32)


def _option(key: str) -> str:
    return "--calibration" if key == "calib" else f"--{key}"


def _first(tokens: np.ndarray, count: int | None, key: str, path: Path) -> np.ndarray:
    if tokens.shape[1] < 2:
        raise ValueError(
            f"{_option(key)} {path}: {key!r} has shape {tokens.shape}; a window has at least 2 "
            "tokens, the first of which is given."
        )
    if count is not None and count > len(tokens):
        raise ValueError(
            f"--samples is {count}, and {path} has {len(tokens)} windows. Pass at most as many."
        )
    return tokens[:count]


def _cut(
    tokens: np.ndarray, key: str, path: Path, count: int | None, length: int, seed: int | None
) -> np.ndarray:
    if tokens.size < length:
        raise ValueError(
            f"{_option(key)} {path} has {tokens.size} tokens, fewer than one window of {length}. "
            "Pass a longer text, or a smaller --length."
        )
    if count is not None and seed is not None:
        rng = np.random.default_rng(seed)
        starts = rng.integers(0, tokens.size - length + 1, size=count)
        return np.stack([tokens[start : start + length] for start in starts])
    if count is not None:
        return models.even_windows(tokens, count=count, length=length)
    whole = tokens.size // length
    return tokens[: whole * length].reshape(whole, length)


def _read(path: Path, key: str, model: Path) -> np.ndarray:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{_option(key)} {path} is no text in UTF-8 ({error}).") from error
    if not text.strip():
        raise ValueError(f"{_option(key)} {path} is empty. Pass a text of some thousand words.")
    return models.tokenize(models.load_tokenizer(model), models.unwrap(text))


def _stored(path: Path, key: str) -> np.ndarray:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            names = list(arrays)
            tokens: Any = arrays[key] if key in names else None
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{_option(key)} {path} is no .npz that can be read ({error}).") from error
    if tokens is None:
        raise ValueError(
            f"{_option(key)} {path} has no array {key!r}; it has {', '.join(names) or 'none'}. "
            f"Store windows of token ids as {key!r}, (windows, tokens)."
        )
    if not np.issubdtype(tokens.dtype, np.integer) or tokens.ndim not in (1, 2) or not tokens.size:
        raise ValueError(
            f"{_option(key)} {path}: {key!r} must hold integer token ids, (tokens,) or "
            f"(windows, tokens); it has dtype {tokens.dtype} and shape {tokens.shape}."
        )
    return tokens


def _check_vocabulary(tokens: np.ndarray, config: LlamaConfig, key: str, path: Path) -> None:
    bad = (tokens < 0) | (tokens >= config.vocab_size)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{_option(key)} {path}: token {int(tokens[where])} at {where} is outside the model's "
            f"vocabulary of {config.vocab_size}. Tokenise the text with this model's tokenizer."
        )
