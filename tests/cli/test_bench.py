"""``jaxprune bench`` measures what it is asked for, and its table is what products look up."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxprune import formats
from jaxprune.cli import main
from jaxprune.kernels import autotune, dispatch, tuning


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    effort = autotune.Effort(sample=1e-4, seconds=0.0, rounds=(1, 1))
    monkeypatch.setattr("jaxprune.cli.bench._EFFORT", effort)


def bench(*words: str) -> int:
    common = ("bench", "--format 4x4", "--shapes 8x16", "--density 0.5")
    return main([part for word in (*common, *words) for part in word.split()])


def test_it_measures_and_writes_a_table_that_is_looked_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert bench("--rows 3", "--dtype float32", f"--out {tmp_path}") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "4x4 3 x 8 x 16 50%" in text
    assert "roofline is the share" in text
    (line,) = json.loads((tmp_path / "bench.json").read_text())["products"]
    assert {t["implementation"] for t in line["timings"]} == {"dense", "xla"}
    (entry,) = tuning.load(tmp_path / "tuning.json")
    assert (entry.product.format, entry.best) == ("4x4", line["best"]["implementation"])

    monkeypatch.setenv(tuning.VARIABLE, str(tmp_path / "tuning.json"))
    w = formats.BlockSparse.from_dense(jnp.eye(8, 16), block=(4, 4), slots=4)
    assert dispatch.choose(3, w, None).dense == (entry.best == "dense")


def test_a_table_elsewhere_is_added_to(tmp_path: Path):
    for rows in ("2", "9"):
        where = f"--out {tmp_path / rows}", f"--tuning {tmp_path / 'own.json'}"
        assert bench(f"--rows {rows}", *where) == 0
    assert [entry.product.rows for entry in tuning.load(tmp_path / "own.json")] == [2, 9]
    assert not (tmp_path / "2" / "tuning.json").exists()


def test_no_product_is_begun_after_the_time_is_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert bench("--rows 2 3 4", "--seconds 0.001", f"--out {tmp_path}") == 0
    assert "2 of 3 products were left out" in " ".join(capsys.readouterr().out.split())
    assert len(tuning.load(tmp_path / "tuning.json")) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shapes 8", "--shapes takes inputs x outputs, such as 4096x11008, got '8'."),
        ("--format 2;4", "format must be 'n:m' such as '2:4'"),
        ("--configs 0", "--configs must be 1 or more, got 0."),
        ("--seconds -1", "--seconds must be more than 0, got -1.0."),
        ("--dtype int8", "dtype must be one of bfloat16, float16, float32, got int8."),
    ],
)
def test_bad_words_are_named(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["bench", "--out", str(tmp_path / "new"), *words.split()]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()
