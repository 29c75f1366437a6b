"""Training steps compiled for slices of TPUs that are not there, and the page on them."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.benchmarks import tpu_aot
from experiments.pod import __main__ as cli
from experiments.pod import cells, measure, report, steps
from experiments.pod.cells import SMALL, Result

ROOT = Path(__file__).resolve().parents[2]
COUNTS = 7 * 4 * 4  # bytes: 7 thresholds of each of 4 layers
MASKS = 4 * 512 * 256 // 4  # bytes of the prunable kernel's masks, on one of 4 chips
TRAINED = ("static", "gradual", "rigl", "mdgf")

compiles = pytest.mark.real.with_args(tpu_aot.missing)


@functools.cache
def small(kind: str, folder: Path) -> dict[str, Result]:
    """Compile tiny decoders in a process of its own, on a host with one device as on a pod."""
    command = [sys.executable, "-m", "experiments.pod", "run", "--small"]
    command += ["--only", f"^{kind}-", "--results", str(folder)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return cells.load(folder)


KINDS = [
    "v5e",
    *(
        pytest.param(kind, marks=pytest.mark.slow(reason="the same for other chips"))
        for kind in ("v6e", "v5p")
    ),
]


@compiles
@pytest.mark.parametrize("kind", KINDS)
def test_every_recipe_compiles_for_a_pod(kind: str, tmp_path_factory: pytest.TempPathFactory):
    found = small(kind, tmp_path_factory.mktemp(kind))
    results = {name.removeprefix(f"{kind}-4-tiny-"): result for name, result in found.items()}
    assert set(results) == {cell.program for cell in SMALL}
    assert all(result.fits for result in results.values())
    for program in TRAINED:
        values, bare = results[program].values, results["bare"].values
        masks = values["arguments"] - bare["arguments"]
        assert MASKS <= masks <= MASKS + 4096, program  # and a few scalars, each in a tile
        moved = measure.added(values, bare)
        assert {each[0] for each in moved} <= {"all-reduce"}, program
        assert max((each[1] for each in moved), default=0) <= COUNTS, program
        assert bool(moved) == (program != "mdgf")
    calibrated = measure.added(results["calibration"].values, results["forward"].values)
    # So small a decoder has its activations gathered anew; sums are of a number for each feature.
    sums = [each[1] for each in calibrated if each[0] == "all-reduce"]
    assert sums
    assert max(sums) <= 4 * 512 * 4
    assert f"| tiny | {TRAINED[-1]} |" in report.text(found)


def test_the_page_is_written_from_the_stored_results():
    results = cells.load(cells.RESULTS)
    assert {cell.name: cell.settings for cell in cells.CELLS} == {
        name: result.settings for name, result in results.items()
    }
    assert report.PAGE.read_text() == report.text(results)


TEXT = """\
  %a = (s32[4]{0}, s32[4]{0}) all-reduce(%x, %y), to_apply=%add
  %b = (s32[4]{0}, s32[4]{0}) all-reduce(%x, %y), to_apply=%add
  %c = bf16[8,2]{1,0} all-gather(%x), dimensions={0}
"""


def test_collectives_are_counted_beyond_those_of_another_program():
    found = measure.listed(TEXT)
    assert found == [["all-gather", 32, "bf16[8,2]", 1], ["all-reduce", 32, "2×s32[4]", 2]]
    bare: dict[str, Any] = {"collectives": [["all-reduce", 32, "2×s32[4]", 1]]}
    assert measure.added({"collectives": found}, bare) == [
        ["all-gather", 32, "bf16[8,2]", 1],
        ["all-reduce", 32, "2×s32[4]", 1],
    ]


class TooLarge:
    """A program for which a chip has no room."""

    def compile(self) -> None:
        raise measure.CompileError(
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
        )


def test_what_does_not_fit_is_a_result(tmp_path: Path):
    assert measure.compiled(TooLarge(), tmp_path) == {"fits": False, "bytes": 22011707392}


def test_a_result_is_kept_and_those_of_other_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    ran = []

    def run(cell: cells.Cell, reports: Path) -> dict[str, Any]:
        ran.append(cell.name)
        return {"fits": False, "bytes": 1e11, "lowering_seconds": 0.5}

    monkeypatch.setattr(cells.Cell, "run", run)
    monkeypatch.setattr(tpu_aot, "missing", lambda: None)
    monkeypatch.setattr(cli.importlib.metadata, "version", lambda name: "1.0")
    page = tmp_path / "pod.md"
    asked = ["--only", "v5p-128-70b-(bare|static)", "--results", str(tmp_path / "results")]
    for _ in range(2):
        assert cli.main([*asked, "--page", str(page)]) == 0
    assert ran == ["v5p-128-70b-bare", "v5p-128-70b-static"]
    assert "no: 100.00 of 95 GB" in page.read_text()
    file = tmp_path / "results" / "v5p-128-70b-bare.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps(known | {"fingerprint": "another", "settings": {"length": 1}}))
    assert cli.main(["run", *asked]) == 2
    assert "is the result of other settings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("missing", "only", "text"),
    [
        ("no compiler", "bare", "error: no compiler"),
        (None, "v4", "error: --only 'v4' matches no cell"),
    ],
)
def test_what_cannot_be_done_is_told(
    missing: str | None,
    only: str,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(tpu_aot, "missing", lambda: missing)
    assert cli.main(["run", "--only", only]) == 2
    assert capsys.readouterr().out.startswith(text)


def test_a_cell_comes_after_what_it_is_compared_with():
    for listed in (cells.CELLS, SMALL):
        names = [cell.name for cell in listed]
        assert len(set(names)) == len(names)
        for cell in listed:
            other = steps.BARE.get(cell.program, "bare")
            before = cell.name.removesuffix(cell.program) + other
            assert names.index(before) <= names.index(cell.name) or cell.program == "forward"
