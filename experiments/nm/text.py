"""Austen's novels as characters: as arrays that travel in one file, and on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runner.api import Arrays, Context

NAME = "austen"
HELD_OUT = "persuasion"
QUICK = (20_000, 2_000)  # training and test characters of a rehearsal


class Text(NamedTuple):
    """Training and held-out characters, on the device."""

    train: jax.Array  # [N] uint8, places in the alphabet
    test: jax.Array  # [M] uint8


def fetch() -> Arrays:
    """Load the six novels; one is held out."""
    from experiments.data import austen  # its package needs TFDS, which a run need not have

    novels = austen.load_novels()
    return encoded(
        "\n".join(text for name, text in novels.items() if name != HELD_OUT), novels[HELD_OUT]
    )


def encoded(train: str, test: str) -> Arrays:
    """Return texts as places in the alphabet of the training text, and that alphabet.

    Raises:
      ValueError: the held-out text has other characters.
    """
    texts = {"train": train, "test": test}
    points = {name: np.array([*map(ord, text)], np.uint32) for name, text in texts.items()}
    alphabet = np.unique(points["train"])
    unknown = np.setdiff1d(points["test"], alphabet)
    if unknown.size or alphabet.size > 256:
        raise ValueError(
            f"the training text has {alphabet.size} characters, and the held-out one also "
            f"{[chr(point) for point in unknown]}: there must be 256 at most, and no others."
        )
    places = {name: np.searchsorted(alphabet, p).astype(np.uint8) for name, p in points.items()}
    return {**places, "alphabet": alphabet}


def on_device(context: Context) -> Text:
    """Return the characters on the device; few of them for a rehearsal."""
    return context.once("text", lambda: _placed(context))


def vocabulary(context: Context) -> int:
    """Return the number of different characters."""
    return len(context.data[NAME]["alphabet"])


def windows(text: jax.Array, starts: jax.Array, length: int) -> jax.Array:
    """Return [B, length] int32: the characters from each start on."""
    at = starts[:, None] + jnp.arange(length, dtype=starts.dtype)[None, :]
    return text[at].astype(jnp.int32)


def _placed(context: Context) -> Text:
    limits = QUICK if context.quick else (None, None)
    arrays = context.data[NAME]
    cut = (arrays[name][:limit] for name, limit in zip(Text._fields, limits, strict=True))
    return Text(*(jnp.asarray(np.ascontiguousarray(part)) for part in cut))
