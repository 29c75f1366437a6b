"""The model that a command works on."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune import models
from jaxprune._core import paths
from jaxprune.models import LlamaConfig, Pretrained
from jaxprune.types import Tree

SMOLLM2 = "smollm2-135m"
_SEEN = 1024  # numbers of a tensor that tell it from another


@dataclasses.dataclass(frozen=True)
class Source:
    """A model on disk, with its parameters as they were read.

    Attributes:
      name: what the user called it.
      path: where it is.
      pretrained: configuration and parameters, the blocks stacked.
    """

    name: str
    path: Path
    pretrained: Pretrained = dataclasses.field(repr=False)

    @property
    def config(self) -> LlamaConfig:
        """The shape of the model."""
        return self.pretrained.config

    def load(self) -> Tree:
        """Return the parameters."""
        return self.pretrained.params

    def fingerprint(self) -> str:
        """Return what tells two models apart, from the shape and some numbers of every tensor."""
        seen = hashlib.sha256(repr(self.config).encode())
        for path, leaf in paths.flatten(self.pretrained.params).items():
            some = np.asarray(leaf.reshape(-1)[:: max(1, leaf.size // _SEEN)])
            seen.update(f"{path}{leaf.dtype}{leaf.shape}".encode() + some.tobytes())
        return seen.hexdigest()

    def tokenizer(self) -> Any:
        """Return the tokenizer, or None if the model brings none or no library reads it."""
        try:
            return models.load_tokenizer(self.path)
        except (ImportError, FileNotFoundError):
            return None


def open_model(name: str) -> Source:
    """Find and read a model.

    Args:
      name: ``smollm2-135m``, a Hugging Face folder, or a ``.gguf`` file.

    Raises:
      ValueError: there is no such model.
    """
    path = models.fetch_smollm2() if name == SMOLLM2 else Path(name)
    if not path.exists():
        raise ValueError(
            f"model {name!r} is not known by name, and is no file or folder. Pass {SMOLLM2}, a "
            "Hugging Face folder, or a .gguf file."
        )
    return Source(name, path, models.load(path, stacked=True))
