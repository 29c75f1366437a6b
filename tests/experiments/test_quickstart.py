"""The main job, small: on scikit-learn's digits, whole, and killed and continued."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.quickstart import report, settings, timing, train
from jaxprune import checkpoint

ARGUMENTS = ["--dataset", "digits", "--epochs", "2", "--batch-size", "256"]
RUNS = ("dense", "90", "98", "2of4")


@pytest.fixture(scope="module", autouse=True)
def as_a_user_runs_it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set promotion as users have it, which optax.adam needs, and share compiled programs."""
    folder = tmp_path_factory.mktemp("shared")
    options = {
        "jax_numpy_dtype_promotion": "standard",
        "jax_compilation_cache_dir": str(folder / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        for name, value in options.items():
            patch.setenv(name.upper(), str(value))  # for the process that is killed
            jax.config.update(name, value)
        yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def whole(as_a_user_runs_it: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole")
    train.main([*ARGUMENTS, "--out", str(out)])
    return out


def read_report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def test_the_report_has_what_the_table_shows(whole: Path) -> None:
    content = read_report(whole)
    runs = {run["name"]: run for run in content["runs"]}
    assert list(runs) == ["dense", "90%", "98%", "2:4", "98% at once"]
    sparsities = [round(run["sparsity"], 3) for run in runs.values()]
    assert sparsities == [0.0, 0.9, 0.98, 0.5, 0.98]
    assert runs["98%"]["kept"] == runs["98% at once"]["kept"] < runs["90%"]["kept"]
    assert runs["98%"]["compressed_bytes"] < runs["90%"]["compressed_bytes"]
    assert runs["2:4"]["compressed_bytes"] < runs["dense"]["compressed_bytes"]
    assert runs["dense"]["compressed_bytes"] == runs["dense"]["dense_bytes"]
    assert list(content["step_times"]) == ["dense", "90%", "98%", "2:4"]
    assert content["step_times"]["dense"]["ratio"] == 1.0
    assert content["data"]["name"] == "digits"
    assert len(content["data"]["sha256"]) == 64
    assert content["settings"]["seed"] == 0
    assert content["machine"]["versions"]["jax"] == jax.__version__
    rise = np.asarray(runs["98%"]["history"]["sparsity"]).ravel()
    assert rise[0] < 0.98
    assert rise[-1] == pytest.approx(0.98, abs=1e-3)
    assert (whole / "quickstart.png").stat().st_size > 10_000


def test_every_run_leaves_its_checkpoint(whole: Path) -> None:
    for name in RUNS:
        assert checkpoint.latest_step(whole / "seed0" / name) == 2


def test_a_killed_run_continues_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "experiments.quickstart", *ARGUMENTS, "--out", str(out)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
    try:
        _wait_for(out / "seed0" / "90" / "1", process)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (out / "report.json").exists()

    train.main([*ARGUMENTS, "--out", str(out), "--resume"])
    for name in RUNS:
        _assert_same_bits(whole / "seed0" / name, out / "seed0" / name)
    for before, after in zip(read_report(whole)["runs"], read_report(out)["runs"], strict=True):
        assert after["accuracy"] == before["accuracy"]
        if before["history"] is not None:
            assert after["history"]["loss"] == before["history"]["loss"]


def test_a_run_is_not_continued_with_other_settings(whole: Path) -> None:
    arguments = [*ARGUMENTS, "--out", str(whole), "--resume", "--learning-rate", "0.5"]
    with pytest.raises(ValueError) as caught:
        train.main(arguments)
    assert str(caught.value) == (
        f"--resume cannot continue the run in {str(whole)!r}, which was started otherwise: "
        "learning_rate 0.008 is now 0.5. Start with the same settings and data, or in another "
        "--out."
    )
    assert checkpoint.latest_step(whole / "seed0" / "dense") == 2


def test_a_batch_of_more_than_all_images_is_refused(whole: Path, tmp_path: Path) -> None:
    arguments = ["--dataset", "digits", "--batch-size", "5000", "--out", str(tmp_path)]
    with pytest.raises(ValueError) as caught:
        train.main(arguments)
    assert str(caught.value) == (
        "--batch-size 5000 is more than the 1498 training images of digits: give 1498 or less."
    )


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    first = train.shuffled(100, 16, seed=3, epoch=5)
    assert first.shape == (6, 16)
    assert len(np.unique(first)) == 96
    np.testing.assert_array_equal(first, train.shuffled(100, 16, seed=3, epoch=5))
    assert not np.array_equal(first, train.shuffled(100, 16, seed=3, epoch=6))
    assert not np.array_equal(first, train.shuffled(100, 16, seed=4, epoch=5))


def test_space_to_depth_moves_every_pixel_into_its_cell() -> None:
    x = np.arange(2 * 5 * 4 * 3, dtype=np.float32).reshape(2, 5, 4, 3)
    deep = np.asarray(train.space_to_depth(jax.numpy.asarray(x)))
    assert deep.shape == (2, 2, 2, 12)
    np.testing.assert_array_equal(deep[1, 1, 0].reshape(2, 2, 3), x[1, 2:4, 0:2])


def test_several_seeds_give_mean_and_deviation() -> None:
    assert report.spread([91.0]) == "91.00%"
    assert report.spread([90.0, 91.0, 92.0]) == "91.00 ± 1.00%"


def test_ratios_are_to_the_first_call() -> None:
    def sleep(seconds: float) -> Any:
        return lambda: time.sleep(seconds)

    times = timing.side_by_side({"fast": sleep(0.001), "slow": sleep(0.02)}, rounds=5)
    assert times["fast"].ratio == 1.0
    assert times["slow"].ratio > 2.0
    assert times["slow"].milliseconds >= 20.0


def test_rare_steps_count_as_often_as_they_come() -> None:
    usual = {"run": timing.StepTime(milliseconds=10.0, ratio=1.0)}
    rare = {"run": timing.StepTime(milliseconds=20.0, ratio=3.0)}
    assert timing.one_in(10, rare, usual) == {"run": timing.StepTime(11.0, 1.2)}


def test_counts_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings.parse(["--epochs", "0"], None)
    assert "argument --epochs: must be 1 or more, got 0" in capsys.readouterr().err


def _wait_for(path: Path, process: subprocess.Popen[bytes], seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.02)


def _assert_same_bits(first: Path, second: Path) -> None:
    """Compare two checkpoints leaf by leaf, whatever their containers."""
    one, other = _leaves(first), _leaves(second)
    assert one.keys() == other.keys()
    for path in one:
        if "seconds" not in path:
            np.testing.assert_array_equal(one[path], other[path], err_msg=path)


def _leaves(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "2" / "manifest.json").read_text())
    template = {
        path: jax.ShapeDtypeStruct(shape, dtype)
        for path, (shape, dtype) in manifest["leaves"].items()
    }
    step, leaves = checkpoint.restore(folder, template)
    assert step == 2
    assert any(path.startswith("opt_state") for path in leaves)
    return leaves
