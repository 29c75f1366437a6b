"""What was measured: for a product of a certain kind and size, the fastest implementation."""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.formats import Bitmap, BlockSparse, NMSparse

PATH = Path(__file__).with_name("tuning.json")
"""The table that comes with the package."""

ESTIMATES = PATH.with_name("tuning_tpu.json")
"""The table of what a compiler estimates for TPUs, where nothing was measured."""

VARIABLE = "JAXPRUNE_TUNING"
"""Environment variable: the path of a table that goes before the package's."""

NEAR = 1.5  # octaves that rows, sides and density may differ by, in all


@dataclasses.dataclass(frozen=True)
class Product:
    """A product, as far as its speed depends on it.

    Attributes:
      device: kind of the device, as `jax.Device.device_kind` names it.
      format: ``"2:4"``, ``"128x128"`` or ``"bitmap"``.
      dtype: numpy's name.
      rows: rows of the dense operand.
      k: length of the contracted axis.
      n_out: columns of the result.
      density: stored share of the weight.
    """

    device: str
    format: str
    dtype: str
    rows: int
    k: int
    n_out: int
    density: float

    def octaves(self, other: "Product") -> float:
        """Return how far two products are apart; infinite if they are of different kinds."""
        kinds = ((p.device, p.format, p.dtype) for p in (self, other))
        if len(set(kinds)) > 1:
            return math.inf
        sizes = [(_ceil(p.rows), p.k, p.n_out, p.density) for p in (self, other)]
        return sum(abs(math.log2(a / b)) for a, b in zip(*sizes, strict=True))


@dataclasses.dataclass(frozen=True)
class Entry:
    """A product, and what served it fastest.

    Attributes:
      product: which product.
      best: ``"dense"``, ``"xla"``, or a kernel's module.
      speedup: dense time divided by the time of ``best``.
      config: fields of the kernel's ``Config``; None for its default.
      estimated: it was not measured, but a compiler's estimate.
    """

    product: Product
    best: str
    speedup: float
    config: Mapping[str, Any] | None = None
    estimated: bool = False


def product_of(rows: int, w: Any, device: str) -> Product:
    """Return the product of a number of rows and a compressed weight.

    Args:
      rows: rows of the dense operand.
      w: the weight, one matrix.
      device: kind of the device.

    Returns:
      What its speed depends on.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import formats, kernels
      >>> w = formats.NMSparse.from_dense(jnp.zeros((8, 4)), n=2, m=4)
      >>> product = kernels.tuning.product_of(3, w, "cpu")
      >>> product.format, product.rows, product.density
      ('2:4', 3, 0.5)
    """
    k, n_out = w.shape[-2:]
    name, density = _kind(w)
    return Product(device, name, np.dtype(w.dtype).name, rows, k, n_out, density)


def _kind(w: Any) -> tuple[str, float]:
    if isinstance(w, NMSparse):
        return f"{w.n}:{w.m}", w.n / w.m
    if isinstance(w, BlockSparse):
        return "{}x{}".format(*w.block), w.slots / math.prod(w.grid)
    assert isinstance(w, Bitmap)
    return "bitmap", w.values.shape[-1] / math.prod(w.shape[-2:])


def near(product: Product, entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries that speak for a product, the nearest first, and estimates last.

    Args:
      product: which product.
      entries: what was measured.

    Returns:
      Entries of the same device, format and dtype. Rows count rounded up to a power of two; rows,
      both sides and density may differ by factors that multiply to less than 3.

    Example:
      >>> from jaxprune.kernels import tuning
      >>> small = tuning.Product("cpu", "64x64", "float32", 16, 1024, 1024, 0.25)
      >>> entry = tuning.Entry(small, "xla", 2.0)
      >>> [e.best for e in tuning.near(small, [entry])]
      ['xla']
    """
    found = [(product.octaves(entry.product), entry) for entry in entries]
    close = [(octaves, entry) for octaves, entry in found if octaves <= NEAR]
    return [entry for _, entry in sorted(close, key=lambda f: (f[1].estimated, f[0]))]


def load(path: str | Path) -> tuple[Entry, ...]:
    """Read a table.

    Args:
      path: of a JSON file that `save` wrote.

    Returns:
      Its entries.

    Raises:
      ValueError: the file is no such table.

    Example:
      >>> from jaxprune.kernels import tuning
      >>> {entry.best for entry in tuning.load(tuning.PATH)} >= {"dense", "xla"}
      True
    """
    try:
        rows = json.loads(Path(path).read_text())
        return tuple(Entry(**{**row, "product": Product(**row["product"])}) for row in rows)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is no table of timings: {error!r}. Write it with kernels.tuning.save."
        ) from None


def save(entries: Iterable[Entry], path: str | Path) -> None:
    """Write a table; of entries for one product, the last counts.

    Args:
      entries: what was measured.
      path: of the JSON file.

    Example:
      >>> import pathlib, tempfile
      >>> from jaxprune.kernels import tuning
      >>> product = tuning.Product("cpu", "64x64", "float32", 16, 1024, 1024, 0.25)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "tuning.json")
      ...     tuning.save([tuning.Entry(product, best, 1.0) for best in ("dense", "xla")], path)
      ...     [entry.best for entry in tuning.load(path)]
      ['xla']
    """
    last = {entry.product: entry for entry in entries}
    rows = [json.dumps(dataclasses.asdict(entry)) for entry in last.values()]
    Path(path).write_text("[\n" + ",\n".join(rows) + "\n]\n")


def table() -> tuple[Entry, ...]:
    """Return the entries that hold: those of ``$JAXPRUNE_TUNING``, the package's, its estimates.

    Returns:
      Entries, those that go first first.
    """
    own = os.environ.get(VARIABLE)
    return (_cached(own) if own else ()) + _cached(str(PATH)) + _cached(str(ESTIMATES))


_cached = functools.lru_cache(load)


def _ceil(rows: int) -> int:
    return 1 << max(rows - 1, 0).bit_length()
