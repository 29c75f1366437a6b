"""Which implementation serves a product: the one asked for, or the fastest that was measured."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from jaxprune.formats import PLAIN, BlockSparse, Layout, NMSparse
from jaxprune.kernels import tuning
from jaxprune.kernels._candidates import CANDIDATES as CANDIDATES
from jaxprune.kernels._candidates import Candidate as Candidate

XLA, DENSE = "xla", "dense"


@dataclasses.dataclass(frozen=True)
class Choice:
    """An implementation and its settings.

    Attributes:
      kernel: the candidate; None for plain XLA.
      config: the kernel's settings; None for its default.
      dense: without a kernel, multiply with the weight made dense.
    """

    kernel: Candidate | None = None
    config: Any = None
    dense: bool = True


@dataclasses.dataclass(frozen=True)
class KernelLayout:
    """The layout of an N:M kernel, by the kernel's name.

    Attributes:
      kernel: last part of the module's name.
    """

    kernel: str

    def pack(self, values: jax.Array, positions: jax.Array, *, m: int) -> Any:
        """Return the kernel's arrays of one matrix."""
        return _named(self.kernel).load().pack(values, positions, m=m)

    def unpack(self, packed: Any, *, n: int, m: int, k: int, n_out: int) -> Any:
        """Return values and positions of one matrix."""
        return _named(self.kernel).load().unpack(packed, n=n, m=m, k=k, n_out=n_out)


def layout_of(rows: int, w: NMSparse) -> Layout:
    """Return the layout in which an N:M weight is multiplied fastest with so many rows.

    Args:
      rows: rows of the dense operand.
      w: the weight, one matrix.

    Returns:
      The layout of the kernel that the table of timings names for this device, or the plain one.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import formats, kernels
      >>> w = formats.NMSparse.from_dense(jnp.zeros((8, 4)), n=2, m=4)
      >>> kernels.layout_of(1, w)
      PlainLayout()
    """
    for entry in tuning.near(tuning.product_of(rows, w, device_kind()), tuning.table()):
        if entry.best in (XLA, DENSE):
            break
        kernel = _find(entry.best)
        if kernel is not None and _refusal(kernel, rows, w) is None:
            return KernelLayout(kernel.kernel)
    return PLAIN


def choose(rows: int, w: Any, implementation: str | None, config: Any = None) -> Choice:
    """Return how to multiply so many rows with a weight.

    Args:
      rows: rows of the dense operand.
      w: the weight, one matrix.
      implementation: ``"xla"``, ``"dense"``, a candidate's name or its kernel's; None for the
        fastest that the table knows.
      config: the kernel's settings, if it is asked for by name.

    Raises:
      ValueError: there is no such implementation, or not here, or not for this product.
    """
    if implementation is None:
        return _fastest(rows, w)
    if implementation in (XLA, DENSE):
        return Choice(dense=implementation == DENSE or not isinstance(w, BlockSparse))
    asked = [c for c in CANDIDATES if implementation in (c.name, c.kernel)]
    here = [c for c in asked if c.platform == jax.default_backend()]
    if not here:
        raise ValueError(_unavailable(implementation, asked))
    refused = []
    for kernel in here:
        reason = _refusal(kernel, rows, w)
        if reason is None:
            return Choice(kernel, config)
        refused.append(f"{kernel.kernel} {reason}")
    raise ValueError(
        f"implementation={implementation!r} cannot multiply {rows} rows with {w!r}: "
        f"{'; '.join(refused)}. implementation='xla' takes everything."
    )


def is_partitioned(*trees: Any) -> bool:
    """Return whether the compiler divides a product among devices, as it cannot divide a kernel."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(trees)]
    return any(mesh.size > 1 and not mesh.are_all_axes_manual for mesh in meshes)


def device_kind() -> str:
    """Return the kind of the default device."""
    return jax.devices()[0].device_kind


def _fastest(rows: int, w: Any) -> Choice:
    product = tuning.product_of(rows, w, device_kind())
    for entry in tuning.near(product, tuning.table()):
        if entry.best in (XLA, DENSE):
            return choose(rows, w, entry.best)
        kernel = _find(entry.best)
        if kernel is None or _refusal(kernel, rows, w) is not None:
            continue
        # Packing anew for each product would cost more than the kernel gains.
        if not isinstance(w, NMSparse) or w.layout == KernelLayout(kernel.kernel):
            # Settings of another size may not fit the kernel's memory.
            if entry.config is None or product.octaves(entry.product) > 0:
                return Choice(kernel)
            return Choice(kernel, kernel.load().Config(**entry.config))
    return Choice()


def _find(kernel: str) -> Candidate | None:
    return next((c for c in CANDIDATES if c.kernel == kernel), None)


def _named(kernel: str) -> Candidate:
    found = _find(kernel)
    if found is None:
        raise ValueError(
            f"a weight is packed for the kernel {kernel!r}, which this version does not have; it "
            f"has {_listed(c.kernel for c in CANDIDATES)}. Pack the weight again."
        )
    return found


def _refusal(kernel: Candidate, rows: int, w: Any) -> str | None:
    """Return why a kernel cannot serve a product, as the rest of a sentence, or None."""
    if kernel.platform != jax.default_backend():
        return f"needs the platform {kernel.platform!r}"
    if w.scale is not None and w.value_dtype.name not in kernel.quantized:
        return f"takes no {w.value_dtype} values"
    k, n_out = w.shape[-2:]
    size = (rows, k, n_out, w.dtype)
    if isinstance(w, NMSparse) and kernel.form == "nm":
        return kernel.load().supports(*size, w.n, w.m, device_kind=device_kind())
    if isinstance(w, BlockSparse) and kernel.form == "block":
        return kernel.load().supports(*size, w.block, device_kind=device_kind())
    return f"takes no {type(w).__name__}"


def _unavailable(implementation: str, asked: Sequence[Candidate]) -> str:
    platform = jax.default_backend()
    here = [XLA, DENSE]
    for candidate in CANDIDATES:
        if candidate.platform == platform:
            here += [candidate.name, candidate.kernel]
    why = (
        f"needs the platform {asked[0].platform!r}" if asked else "is the name of no implementation"
    )
    return (
        f"implementation={implementation!r} {why}. The platform {platform!r} has "
        f"{_listed(dict.fromkeys(here))}; None chooses the fastest."
    )


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"
