"""What every format is, whatever it stores."""

import abc
from typing import Any, Self

import numpy as np

from jaxprune.formats import _checks


class Compressed(abc.ABC):
    """Matrices ``[..., in, out]``; leading axes stack layers."""

    dense_dtype: np.dtype[Any] | None

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, ``(*layers, in, out)``."""

    @property
    @abc.abstractmethod
    def value_dtype(self) -> np.dtype[Any]:
        """Dtype of the stored values: the weight's, unless they are quantised."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the dense weight."""
        return self.value_dtype if self.dense_dtype is None else self.dense_dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return _checks.nbytes(self)

    def __getitem__(self, index: Any) -> Self:
        """Return a layer, or a range of layers, of a stack."""
        return _checks.layer_of(self, index)
