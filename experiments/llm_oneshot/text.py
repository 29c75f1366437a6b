"""Austen's novels as tokens of SmolLM2: arrays that travel in one file, and windows of them."""

import numpy as np

from experiments.runner.api import Arrays, Context
from jaxprune import models

NAME = "austen_tokens"
HELD_OUT = "persuasion"
BEGINNING = "Chapter 1"  # of the held-out text: its title page is left out


def fetch() -> Arrays:
    """Cut the six novels into tokens, lines joined; one is held out."""
    from experiments.data import austen  # its package needs TFDS, which a run need not have

    tokenizer = models.load_tokenizer(models.fetch_smollm2())
    novels = austen.load_novels()
    held_out = novels.pop(HELD_OUT)
    held_out = held_out[held_out.index(BEGINNING) :]
    texts = {"train": "\n\n".join(novels.values()), "test": held_out}
    cut = {name: models.tokenize(tokenizer, models.unwrap(text)) for name, text in texts.items()}
    return {name: tokens.astype(np.uint16) for name, tokens in cut.items()}  # 49,152 words


def drawn(
    context: Context, seed: int, *, count: int, length: int, vocabulary: int, use: int
) -> np.ndarray:
    """Draw windows from the training novels.

    Args:
      context: has the tokens.
      seed: of the places.
      count: number of windows.
      length: of each.
      vocabulary: of the model; a tiny one takes the remainders.
      use: another number draws other windows.

    Returns:
      int32 (count, length).
    """
    tokens = context.data[NAME]["train"]
    rng = np.random.default_rng((seed, use))
    starts = rng.integers(0, len(tokens) - length + 1, size=count)
    return _ids(np.stack([tokens[start : start + length] for start in starts]), vocabulary)


def held_out(context: Context, *, count: int, length: int, vocabulary: int) -> np.ndarray:
    """Return the first windows of the held-out novel, one after the other; int32."""
    tokens = context.data[NAME]["test"][: count * length]
    return _ids(tokens.reshape(count, length), vocabulary)


def _ids(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    return tokens.astype(np.int32) % vocabulary
