"""The calibration benchmark: what is measured on our side, and how it is shown."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks import calibration, calibration_rows
from experiments.benchmarks import calibration_jax as ours

SMALL = ["--hidden", "16", "--ffn", "16", "--heads", "2", "--samples", "4", "--batch", "2"]


def test_cases_are_timed_in_turns_until_the_time_is_up() -> None:
    order: list[str] = []
    cases: dict[str, Callable[[], Any]] = {n: (lambda n=n: order.append(n)) for n in "ab"}
    assert {len(times) for times in calibration_rows.samples(cases, 0.0).values()} == {1}
    assert order == ["a", "b"]
    calibration_rows.samples(cases, 60.0, most=3)
    assert order == ["a", "b"] * 4


def test_a_block_is_measured_and_kept(tmp_path: Path) -> None:
    where = ["--seconds", "0", "--tf32", "off", "--length", "8", "--output", str(tmp_path)]
    assert calibration.main(["block", *SMALL, *where, "--without-torch"]) == 0
    (path,) = tmp_path.iterdir()
    kept = json.loads(path.read_text())["calibration"]
    rows = kept["block"]["rows"]
    assert [(row["method"], row["pattern"]) for row in rows] == [
        ("wanda", "50%"), ("wanda", "2:4"), ("sparsegpt", "50%"), ("sparsegpt", "2:4"),
    ]  # fmt: skip
    assert all(row[key] > 0 for row in rows for key in ("forward", "collect", "solve"))
    wanda, groups, compensated, _ = (row["error"] for row in rows)
    assert compensated < wanda < groups
    # The other part of this device stays.
    device = calibration.timing.device()["device"]
    path.write_text(json.dumps({"calibration": {"device": device, "smollm2": 1, "block": 2}}))
    assert calibration.kept("block", tmp_path) == {"smollm2": 1}


def test_masks_are_compared_entry_by_entry() -> None:
    a = {"x": np.array([1.0, 0.0, 2.0]), "y": np.array([0.0])}
    b = {"x": np.array([3.0, 4.0, 0.0]), "y": np.array([0.0])}
    assert calibration_rows.equal_share(a, b) == 0.5


def test_both_sides_are_shown() -> None:
    row = {"method": "wanda", "pattern": "2:4", "tf32": True, "forward": 1.0, "collect": 2.0}
    row |= {"solve": 0.5, "torch_forward": 1.0, "torch_collect": 4.0, "torch_solve": 2.0}
    row |= {"equal": 0.99995, "error": 0.25, "torch_error": 0.5, "peak_bytes": 2e9}
    row |= {"compile_passes": 1.0, "compile_solve": 2.0}
    _, cells = calibration.block_table([row])
    assert cells == [
        ["wanda", "2:4", "on", "1 s / 1 s", "2 s / 4 s", "500 ms / 2 s", "3.5 s / 7 s", "4, 2",
         "2.00 / -", "99.9950%", "0.25 / 0.5", "3 s"],
    ]  # fmt: skip
    alone = {key: value for key, value in row.items() if "torch" not in key}
    alone |= {"seconds": 3.0, "block": 0.1, "compile": 4.0}
    _, cells = calibration.smollm2_table([alone])
    assert cells[0][2:6] == ["1 s / -", "3 s / -", "-", "100 ms / -"]


def test_batches_are_whole() -> None:
    with pytest.raises(SystemExit, match="--samples 4 is not a multiple of --batch 3"):
        calibration.main(["block", *SMALL, "--batch", "3", "--without-torch"])


def test_layers_are_named_within_their_block() -> None:
    assert ours.named("layers/mlp/up_proj/kernel") == "mlp/up_proj"
    assert ours.named("layers_12/mlp/up_proj/kernel") == "mlp/up_proj"


def _without_torch() -> bool:
    return importlib.util.find_spec("torch") is None


def test_without_torch_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    if _without_torch():
        with pytest.raises(ModuleNotFoundError, match="Install torch, or pass --without-torch"):
            calibration_rows.twin()
    else:
        twin = calibration_rows.twin()
        monkeypatch.setattr(twin.importlib, "import_module", missing)
        with pytest.raises(ModuleNotFoundError, match="Install torch, or pass --without-torch"):
            twin.import_torch()
