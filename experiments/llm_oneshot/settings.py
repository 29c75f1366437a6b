"""What decides the result of a cell."""

import dataclasses
from typing import Any

from jaxprune import NM, Unstructured

METHODS = ("magnitude", "wanda", "ria", "sparsegpt", "gblm", "admm")
PATTERNS = ("2-4", "50", "60", "4-8")
RECOVERIES = ("perp", "norms", "sft-ag", "sft-ma")
RATES = {"perp": 5e-4, "norms": 2e-3, "sft-ag": 1e-3, "sft-ma": 1e-3}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides the result of a cell, the weights of the model included."""

    method: str  # "dense" prunes nothing
    pattern: str | None = None  # n-m, or the share of zeros in per cent
    allocation: str = "uniform"
    recovery: str | None = None
    learning_rate: float = 0.0
    model: str = "smollm2-135m"
    length: int = 512  # of all windows
    calibration_windows: int = 64
    calibration_batch: int = 16
    loss_windows: int = 8  # of ECoFLaP's scores
    test_windows: int = 128
    test_batch: int = 8
    steps: int = 200
    chunks: int = 4
    batch_size: int = 2
    rank: int = 16
    alpha: float = 32.0
    entries: int = 4_884_480  # of SFT: as many numbers as MaskLoRA of rank 16 trains

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        if self.pattern is None:
            return 0.0
        kind: Any = self.kind
        return int(self.pattern) / 100 if isinstance(kind, Unstructured) else kind.final_sparsity

    @property
    def kind(self) -> NM | Unstructured:
        """The pattern."""
        if self.pattern is None or "-" not in self.pattern:
            return Unstructured()
        return NM(*map(int, self.pattern.split("-")))

    @property
    def name(self) -> str:
        """Of the cell."""
        parts = [self.method, self.pattern, self.recovery]
        parts.insert(0, None if self.allocation == "uniform" else self.allocation)
        if self.recovery is not None and self.learning_rate != RATES[self.recovery]:
            parts.append(f"{self.learning_rate:g}")
        return "-".join(part for part in parts if part is not None)

    def calibrated(self) -> bool:
        """Whether seeds differ: they draw calibration windows and those of retraining."""
        return self.recovery is not None or self.method not in ("dense", "magnitude")
