"""``jaxprune llm`` on a small model, and what ``eval`` and ``inspect`` say of its folder."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxprune import models
from jaxprune.cli import main
from tests.cli import small

METHODS = ("magnitude", "wanda", "sparsegpt")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module", params=METHODS)
def run(request: pytest.FixtureRequest, home: Path) -> Path:
    out = home / f"of-{request.param}"
    assert small.llm(home, out, method=request.param, seed=3) == 0
    return out


@pytest.fixture(scope="module")
def grouped(home: Path) -> Path:
    assert small.llm(home, home / "grouped", pattern="2:4") == 0
    return home / "grouped"


def test_the_report_says_what_was_done_and_what_was_lost(run: Path):
    found = small.report(run)
    assert found["method"] == run.name.removeprefix("of-")
    assert (found["pattern"], found["allocation"], found["seed"]) == ("unstructured", "uniform", 3)
    assert found["sparsity_asked"] == 0.5
    masks = small.tensors(run, "masks.safetensors").values()
    zeros, pruned = sum((~mask).sum() for mask in masks), sum(mask.size for mask in masks)
    assert found["sparsity"] == zeros / pruned == pytest.approx(0.5, abs=0.01)
    assert found["windows"] == {"calibration": [4, 12], "evaluation": [4, 12]}
    assert found["seconds"] > sum(block["seconds"] for block in found["blocks"]) > 0.0
    assert set(found["versions"]) == {"jax", "jaxprune"}
    assert found["versions"]["jax"] == jax.__version__
    weights = [one for block in found["blocks"] for one in block["weights"]]
    assert [one["layer"] for one in weights] == [0] * 7 + [1] * 7 + [2] * 7
    assert all(0.0 < one["error"] < 1.0 and 0.5 <= one["sparsity"] < 0.51 for one in weights)
    size = sum(array.nbytes for array in small.tensors(run).values())
    assert found["bytes"] == {"dense": size, "bitmap": size - 4 * zeros + pruned // 8}
    assert found["perplexity"]["dense"] != found["perplexity"]["pruned"]


def test_masks_are_the_non_zeros_under_the_names_of_the_model(run: Path, home: Path):
    masks, after = small.tensors(run, "masks.safetensors"), small.tensors(run)
    before = small.tensors(home / "dense")
    assert set(masks) == small.PRUNED
    assert set(after) == set(before)
    for name, array in after.items():
        assert array.shape == before[name].shape
        if name in masks:
            np.testing.assert_array_equal(masks[name], array != 0)
        else:
            np.testing.assert_array_equal(array, before[name])
    moved = any((after[name] != before[name])[mask].any() for name, mask in masks.items())
    assert moved == (run.name == "of-sparsegpt")


def test_the_folder_holds_the_results_and_nothing_else(run: Path):
    files = ["config.json", "masks.safetensors", "model.safetensors", "report.json", "run.json"]
    assert sorted(path.name for path in run.iterdir()) == files


def test_eval_finds_the_perplexity_of_the_report(
    run: Path, home: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["eval", str(run), "--eval", str(home / "tokens.npz")]) == 0
    assert main(["eval", str(home / "dense"), "--eval", str(home / "tokens.npz")]) == 0
    expected = small.report(run)["perplexity"]
    line = "perplexity {:.3f} over 44 predictions in 4 windows of 12 tokens\n"
    assert capsys.readouterr().out == line.format(expected["pruned"]) + line.format(
        expected["dense"]
    )


def test_magnitude_keeps_what_is_above_the_median_of_every_matrix(home: Path):
    out = home / "of-magnitude"
    if not out.exists():
        assert small.llm(home, out, method="magnitude", seed=3) == 0
    before, masks = small.tensors(home / "dense"), small.tensors(out, "masks.safetensors")
    for name, mask in masks.items():
        size = np.abs(before[name])
        cut = np.sort(size, axis=None)[size.size // 2]  # what ties with it goes, as published
        np.testing.assert_array_equal(mask, size > cut)


def test_two_of_four_consecutive_inputs_are_kept(grouped: Path, capsys: pytest.CaptureFixture[str]):
    for mask in small.tensors(grouped, "masks.safetensors").values():
        assert (mask.reshape(len(mask), -1, 4).sum(-1) == 2).all()
    assert small.report(grouped)["sparsity_asked"] == 0.5
    capsys.readouterr()
    assert main(["inspect", str(grouped)]) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if "layers.2.mlp.down_proj" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][1:] == [
        *("16 x 24", "0.5000", "yes", "yes")
    ]
    assert "wanda, 2:4, uniform" in shown
    assert "embed_tokens" not in shown


def test_inspect_finds_no_groups_where_there_are_none(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["inspect", str(run)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "_proj" in line]
    assert len(rows) == len(small.PRUNED)
    assert "no" in rows[0]


def test_inspect_of_a_dense_model(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(home / "dense")]) == 0
    assert capsys.readouterr().out == "No tensor of two axes has a zero.\n"


def test_a_log_tells_of_every_block(home: Path, capsys: pytest.CaptureFixture[str]):
    assert small.llm(home, home / "logged", method="magnitude") == 0
    shown = capsys.readouterr().out
    assert [f"block {i} of 3 in " in shown for i in range(5)] == [False, True, True, True, False]


class _Letters:
    """A tokenizer of letters."""

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Any:
        return SimpleNamespace(ids=[ord(letter) % 32 for letter in sequence])

    def id_to_token(self, token: int) -> str:
        return chr(64 + token)

    def save(self, path: str) -> None:
        Path(path).write_text("{}")


def test_a_text_is_cut_into_windows(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(models, "load_tokenizer", lambda path: _Letters())
    text = tmp_path / "text.txt"
    text.write_text("It is a truth\nuniversally acknowledged " * 4)
    some = {"method": "magnitude", "length": 12, "samples": 4, "calibration": text, "eval": text}
    reports = []
    for name, more in {
        "even": {},
        "random": {"random_windows": True},
        "other": {"seed": 1},
    }.items():
        assert small.llm(home, tmp_path / name, **some, **more) == 0
        reports.append(small.report(tmp_path / name))
    assert reports[0]["windows"] == {"calibration": [4, 12], "evaluation": [13, 12]}
    assert reports[0]["calibration"] == reports[2]["calibration"] != reports[1]["calibration"]
    assert (tmp_path / "even" / "tokenizer.json").is_file()


@pytest.mark.slow  # compiles the scores of the dense model as well
def test_owl_divides_the_sparsity_among_the_blocks(home: Path, tmp_path: Path):
    assert small.llm(home, tmp_path, allocation="owl", sparsity=0.6) == 0
    found = small.report(tmp_path)
    shares = {round(block["weights"][4]["sparsity"], 3) for block in found["blocks"]}
    assert len(shares) > 1
    assert found["sparsity"] == pytest.approx(0.6, abs=0.05)  # whole inputs of 16


@pytest.mark.slow  # compiles the loss, and magnitude for four shapes
def test_ecoflap_divides_the_sparsity_among_the_blocks(home: Path, tmp_path: Path):
    assert small.llm(home, tmp_path, method="magnitude", allocation="ecoflap", sparsity=0.6) == 0
    found = small.report(tmp_path)
    shares = [block["weights"][4]["sparsity"] for block in found["blocks"]]
    assert max(shares) - min(shares) > 0.02
    assert max(shares) < 0.72  # round(0.6 + 0.1, 1), and what ties at the cut
    assert found["sparsity"] == pytest.approx(0.6, abs=0.01)


@pytest.mark.slow  # differentiates the whole model
def test_dpruner_reads_a_second_text(home: Path, tmp_path: Path):
    tokens = np.load(home / "tokens.npz")
    texts = {"one": tokens["eval"], "other": 31 - tokens["eval"]}
    masks = []
    for name, general in texts.items():
        file, out = tmp_path / f"{name}.npz", tmp_path / name
        np.savez(file, general=general[:2])
        assert small.llm(home, out, method="dpruner", general=file, rate=300.0) == 0
        found = small.report(out)
        assert found["windows"]["general"] == [2, 12]
        assert found["sparsity"] == pytest.approx(0.5, abs=0.001)
        masks.append(small.tensors(out, "masks.safetensors"))
    assert any((masks[0][name] != masks[1][name]).any() for name in masks[0])
    file = tmp_path / "other.npz"
    assert (
        small.llm(home, tmp_path / "one", method="dpruner", general=file, rate=300.0, resume=True)
        == 1
    )


@pytest.mark.slow  # differentiates the whole model, and compiles the solvers
@pytest.mark.parametrize("method", ["ria", "gblm", "admm", "alps"])
def test_the_other_methods_run(method: str, home: Path, tmp_path: Path):
    assert small.llm(home, tmp_path, method=method) == 0
    assert small.report(tmp_path)["sparsity"] == pytest.approx(0.5, abs=0.01)
