"""The figures of a summary."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of one weight, or of several together.

    Attributes:
      path: the weight's name; a description for several.
      shape: its shape; empty for several.
      dtype: its dtype, or all that occur.
      size: number of weights.
      kept: number of weights that the mask keeps.
      sparsity: share of pruned weights, ``1 − kept / size``.
      pattern: the pattern that was asked about, as text; empty without one.
      nonzero: pruned weights whose value is not exactly zero; None if values are not known.
      holds: whether the mask obeys the pattern, as far as one was given, and every pruned weight
        is exactly zero, as far as values are known; None if neither can be told.
      dense_bytes: size of the dense array.
      compressed_bytes: estimated size in the smallest format that applies.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    kept: int
    sparsity: float
    pattern: str
    nonzero: int | None
    holds: bool | None
    dense_bytes: int
    compressed_bytes: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The figures of a pruned model.

    Attributes:
      rows: one for each weight that has a mask, in tree order.
      total: these together; its sparsity is the one that transforms and allocations speak of.
      unprunable: all leaves without a mask together, dense.
      model: everything together; its bytes are the honest size of the model.
    """

    rows: tuple[Row, ...]
    total: Row
    unprunable: Row
    model: Row


def share(size: int, kept: int) -> float:
    """Return the sparsity; nothing is not sparse."""
    return 1.0 - kept / size if size else 0.0


def together(path: str, rows: Sequence[Row]) -> Row:
    """Return the figures of several rows as one."""
    size, kept = sum(row.size for row in rows), sum(row.kept for row in rows)
    known = [row.nonzero for row in rows if row.nonzero is not None]
    patterns = {row.pattern for row in rows}
    return Row(
        path=path,
        shape=(),
        dtype=", ".join(sorted({row.dtype for row in rows})),
        size=size,
        kept=kept,
        sparsity=share(size, kept),
        pattern=patterns.pop() if len(patterns) == 1 else "",
        nonzero=sum(known) if known else None,
        holds=_all([row.holds for row in rows]),
        dense_bytes=sum(row.dense_bytes for row in rows),
        compressed_bytes=sum(row.compressed_bytes for row in rows),
    )


def _all(holds: Sequence[bool | None]) -> bool | None:
    if False in holds:
        return False
    return True if holds and None not in holds else None
