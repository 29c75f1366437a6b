"""The figures of a plan."""

import dataclasses
from collections.abc import Mapping, Sequence

from jaxprune.analysis._rows import share


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """What a run will take of one weight, or of several together.

    Attributes:
      path: the weight's name; a description for several.
      shape: its shape; empty for several.
      dtype: its dtype, or all that occur.
      split: the mesh axes that split its axes, as in ``"data × ·"``; empty for several.
      pattern: the pattern of its zeros, as text; empty without one.
      size: number of weights.
      kept: number of weights that the loss sees after the last step; None if only the run tells.
      sparsity: ``1 − kept / size``; None if only the run tells.
      mean_kept: number of weights that the loss sees, on average over the steps; None if only the
        run tells.
      weight_bytes: of the weights, on one device.
      mask_bytes: of the masks, on one device.
      method_bytes: of what the method keeps besides masks, on one device.
      optimizer_bytes: of the state of the wrapped optimizer and of those around it, on one device.
      training_flops: of a dense step, on all devices together; None without a graph.
      sparse_training_flops: of a sparse step, on average over the steps; None without a graph.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    split: str
    pattern: str
    size: int
    kept: int | None
    sparsity: float | None
    mean_kept: float | None
    weight_bytes: int
    mask_bytes: int
    method_bytes: int
    optimizer_bytes: int
    training_flops: float | None
    sparse_training_flops: float | None

    @property
    def bytes(self) -> int:
        """Bytes on one device in all."""
        parts = (self.weight_bytes, self.mask_bytes, self.method_bytes, self.optimizer_bytes)
        return sum(parts)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
      rows: one for each prunable weight, in tree order.
      total: these together.
      unprunable: all other parameters together, dense.
      rest: what belongs to no parameter: counters and tables of the states, and the products of
        two activations; on every device.
      model: everything together.
      mesh: length of each mesh axis; empty for a single device.
      steps: calls of update in the run, or None if nothing says how many.
      notes: what the figures assume, one sentence each.
    """

    rows: tuple[PlanRow, ...]
    total: PlanRow
    unprunable: PlanRow
    rest: PlanRow
    model: PlanRow
    mesh: Mapping[str, int]
    steps: int | None
    notes: tuple[str, ...]

    @property
    def run_flops(self) -> float | None:
        """Training FLOPs of all steps if they were dense; None without a graph or steps."""
        return _times(self.model.training_flops, self.steps)

    @property
    def sparse_run_flops(self) -> float | None:
        """Training FLOPs of all steps with kept weights; None without a graph or steps."""
        return _times(self.model.sparse_training_flops, self.steps)


def _times(flops: float | None, steps: int | None) -> float | None:
    return None if flops is None or steps is None else flops * steps


def together(
    path: str, rows: Sequence[PlanRow], kept: float | None, mean_kept: float | None
) -> PlanRow:
    """Return the figures of several rows as one; what they keep in all may be known alone."""
    size = sum(row.size for row in rows)
    whole = None if kept is None else round(kept)
    patterns = {row.pattern for row in rows}
    return PlanRow(
        path=path,
        shape=(),
        dtype=", ".join(sorted({row.dtype for row in rows} - {""})),
        split="",
        pattern=patterns.pop() if len(patterns) == 1 else "",
        size=size,
        kept=whole,
        sparsity=None if whole is None else share(size, whole),
        mean_kept=mean_kept,
        weight_bytes=sum(row.weight_bytes for row in rows),
        mask_bytes=sum(row.mask_bytes for row in rows),
        method_bytes=sum(row.method_bytes for row in rows),
        optimizer_bytes=sum(row.optimizer_bytes for row in rows),
        training_flops=_sum([row.training_flops for row in rows]),
        sparse_training_flops=_sum([row.sparse_training_flops for row in rows]),
    )


def _sum(values: Sequence[float | None]) -> float | None:
    return sum(value for value in values if value is not None) if None not in values else None
