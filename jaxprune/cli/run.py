"""What the arguments of ``jaxprune llm`` ask for, read and checked."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.cli.source import Source

BLOCKS = r"^layers(_\d+)?/.*kernel$"  # not the embedding, not the head


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of ``jaxprune llm``.

    Attributes:
      source: the model.
      method: by name.
      allocation: by name.
      calibration: tokens, (windows, length).
      general: open-domain tokens of the same length for ``dpruner``; None for other methods.
      evaluation: tokens, (windows, length).
      pattern: ``Unstructured()`` or ``NM(n, m)``.
      sparsity: share of zeros.
      batch: windows that go through a block together; divides the number of windows.
      seed: of what is random.
      rate: of ``dpruner``.
    """

    source: Source
    method: str
    allocation: str
    calibration: np.ndarray
    general: np.ndarray | None
    evaluation: np.ndarray
    pattern: Any
    sparsity: float
    batch: int
    seed: int
    rate: float

    def batches(self, windows: np.ndarray) -> list[jax.Array]:
        """Return windows in batches, all of one shape."""
        tokens = jnp.asarray(windows)
        return [tokens[i : i + self.batch] for i in range(0, len(tokens), self.batch)]
