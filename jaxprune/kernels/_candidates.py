"""Every kernel that `sparse_matmul` may take: a plain tuple, in order of preference.

A kernel is a module of this package with the class ``Config``, whose fields are numbers, and the
functions ``supports`` and ``configs``, which lists what is worth timing for a product, the default
first; and

- for `NMSparse`: ``pack``, ``unpack`` and ``matmul``; ``configs(rows, k, n_out, n, m)``;
- for `BlockSparse`: ``forward``, ``input_gradient`` and ``weight_gradient``, which take the number
  of slots in use as ``count=``; ``configs(rows, k, n_out, dtype, block, density)``.

A module is imported when its platform is the one at hand, and only then.
"""

import dataclasses
import importlib
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One kernel.

    Attributes:
      name: of the implementation that it belongs to, ``"mosaic_gpu"`` or ``"mosaic_tpu"``.
      platform: as `jax.default_backend` calls it.
      form: what it multiplies with.
      module: where it is, in full.
      quantized: names of dtypes of quantised values that it takes, besides the weight's own.
    """

    name: str
    platform: str
    form: Literal["nm", "block"]
    module: str
    quantized: tuple[str, ...] = ()

    @property
    def kernel(self) -> str:
        """The last part of the module's name, which tables of timings and layouts use."""
        return self.module.rpartition(".")[2]

    def load(self) -> Any:
        """Import the module."""
        return importlib.import_module(self.module)


CANDIDATES: tuple[Candidate, ...] = (
    Candidate("mosaic_gpu", "gpu", "nm", "jaxprune.kernels.nm_decode_gpu"),
    Candidate("mosaic_gpu", "gpu", "nm", "jaxprune.kernels.nm_gemm_gpu"),
    Candidate("mosaic_gpu", "gpu", "block", "jaxprune.kernels.block_gpu"),
    Candidate("mosaic_tpu", "tpu", "block", "jaxprune.kernels.block_tpu"),
    Candidate("mosaic_tpu", "tpu", "nm", "jaxprune.kernels.nm_tpu", ("int8",)),
)
"""The kernels that `sparse_matmul` chooses from, the preferred first."""
