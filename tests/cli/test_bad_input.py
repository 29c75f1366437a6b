"""What a user gets wrong: one line on stderr, exit code 1, and no folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxprune.cli import main
from tests.cli import small


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small.write(tmp_path_factory.mktemp("home"))
    with np.load(folder / "tokens.npz") as stored:
        tokens = dict(stored)
    outside = tokens["calib"].copy()
    outside[1, 5] = 32
    np.savez(folder / "outside.npz", calib=outside)
    np.savez(folder / "negative.npz", calib=-1 - tokens["calib"])
    np.savez(folder / "other.npz", ids=tokens["calib"])
    np.savez(folder / "floats.npz", calib=tokens["calib"].astype(np.float32))
    np.savez(folder / "short.npz", calib=tokens["calib"][0])
    np.savez(folder / "narrow.npz", calib=tokens["calib"][:, :1])
    np.savez(folder / "long.npz", calib=np.zeros((2, 65), np.int32))
    np.savez(folder / "general.npz", general=tokens["calib"][:, :9])
    np.savez(folder / "none.npz", calib=np.zeros((0, 12), np.int32))
    (folder / "broken.npz").write_bytes((folder / "tokens.npz").read_bytes()[:200])
    (folder / "empty.txt").write_text(" \n")
    (folder / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (folder / "words.txt").write_text("some words")
    return folder


OPTIONS: list[tuple[dict[str, Any], str]] = [
    (
        {"pattern": "2/4"},
        "--pattern must be unstructured, or n:m with n kept of every m as in 2:4; got '2/4'.",
    ),
    (
        {"pattern": "5:4"},
        "NM: n must be in [1, m=4], got 5. It is the number of weights kept in every group of 4; "
        "2:4 is NM(2, 4).",
    ),
    (
        {"pattern": "2:4", "sparsity": 0.6},
        "--pattern 2:4 keeps 2 of every 4, a sparsity of 0.5; --sparsity is 0.6. Leave --sparsity "
        "out, or choose another pattern.",
    ),
    (
        {"pattern": "2:5"},
        "--pattern 2:5: groups of 5 do not divide the 16 inputs from the hidden state. Pass an M "
        "that divides 16, 16, 24.",
    ),
    (
        {"pattern": "8:16"},
        "--pattern 8:16: groups of 16 do not divide the 24 inputs from the feed-forward layer. "
        "Pass an M that divides 16, 16, 24.",
    ),
    ({"sparsity": 1.0}, "--sparsity must be in [0, 1), got 1.0: the share of zeros."),
    ({"sparsity": "nan"}, "--sparsity must be in [0, 1), got nan: the share of zeros."),
    ({"batch_size": 0}, "--batch-size must be 1 or more, got 0."),
    (
        {"pattern": "2:4", "allocation": "owl"},
        "--allocation owl divides a sparsity among the blocks, and --pattern 2:4 has the same in "
        "all of them. Pass --pattern unstructured.",
    ),
    (
        {"pattern": "2:4", "allocation": "ecoflap"},
        "--allocation ecoflap divides a sparsity among the blocks, and --pattern 2:4 has the same "
        "in all of them. Pass --pattern unstructured.",
    ),
    (
        {"pattern": "3:6", "method": "sparsegpt", "model": "not/read"},
        "--method sparsegpt takes 128 inputs at a time, which --pattern 3:6 would cut within a "
        "group of 6. Pass an M that divides 128, or another method.",
    ),
    (
        {"method": "dpruner"},
        "--method dpruner reads a second text: --calibration is of the domain, --general of all "
        "kinds. Pass --general.",
    ),
    (
        {"general": "{home}/tokens.npz"},
        "--general is read by --method dpruner alone, and --method is wanda. Leave it out.",
    ),
    (
        {"method": "dpruner", "general": "{home}/tokens.npz"},
        "--general {home}/tokens.npz has no array 'general'; it has calib, eval. Store windows of "
        "token ids as 'general', (windows, tokens).",
    ),
    (
        {"method": "dpruner", "general": "{home}/general.npz"},
        "--calibration has windows of 12 tokens, and --general of 9. Store windows of one length.",
    ),
    ({"rate": -1.0}, "--rate must be 0 or more, got -1.0."),
    ({"length": 1}, "--length must be 2 or more, got 1: the first token is given."),
    ({"samples": 0}, "--samples must be 1 or more, got 0."),
    (
        {"samples": 5},
        "--samples is 5, and {home}/tokens.npz has 4 windows. Pass at most as many.",
    ),
    (
        {"model": "smollm3"},
        "model 'smollm3' is not known by name, and is no file or folder. Pass smollm2-135m, a "
        "Hugging Face folder, or a .gguf file.",
    ),
]
FILES = {
    "absent.txt": "is not a file. Pass a text or an .npz of token ids.",
    "empty.txt": "is empty. Pass a text of some thousand words.",
    "latin.txt": "is no text in UTF-8 ('utf-8' codec can't decode byte 0xef in position 2: invalid "
    "continuation byte).",
    "outside.npz": ": token 32 at (1, 5) is outside the model's vocabulary of 32. Tokenise the "
    "text with this model's tokenizer.",
    "other.npz": "has no array 'calib'; it has ids. Store windows of token ids as 'calib', "
    "(windows, tokens).",
    "floats.npz": ": 'calib' must hold integer token ids, (tokens,) or (windows, tokens); it has "
    "dtype float32 and shape (4, 12).",
    "none.npz": ": 'calib' must hold integer token ids, (tokens,) or (windows, tokens); it has "
    "dtype int32 and shape (0, 12).",
    "short.npz": "has 12 tokens, fewer than one window of 512. Pass a longer text, or a smaller "
    "--length.",
    "narrow.npz": ": 'calib' has shape (4, 1); a window has at least 2 tokens, the first of which "
    "is given.",
    "long.npz": "has windows of 65 tokens; the model takes at most 64. Pass a smaller --length.",
    "broken.npz": "is no .npz that can be read (File is not a zip file).",
}


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """What went to stderr, without its title."""
    title, message = capsys.readouterr().err.split(": ", 1)
    assert title == "error"
    return message.removesuffix("\n")


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_an_option_that_does_not_fit(
    options: dict[str, Any],
    message: str,
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    given = {k: str(v).replace("{home}", str(home)) for k, v in options.items()}
    assert small.llm(home, tmp_path / "out", **given) == 1
    assert complaint(capsys) == message.replace("{home}", str(home))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_calibration_file_that_does_not_fit(
    name: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert small.llm(home, tmp_path / "out", calibration=home / name) == 1
    message = FILES[name]
    between = "" if message.startswith(":") else " "
    assert complaint(capsys) == f"--calibration {home / name}{between}{message}"
    assert not (tmp_path / "out").exists()


def test_a_negative_token(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert small.llm(home, tmp_path / "out", calibration=home / "negative.npz") == 1
    assert "at (0, 0) is outside the model's vocabulary of 32." in complaint(capsys)


def test_a_text_for_a_model_without_a_tokenizer(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert small.llm(home, tmp_path / "out", eval=home / "words.txt") == 1
    # Which of the two is missing depends on what is installed.
    found = complaint(capsys)
    missing = f"{home}/dense holds no tokenizer.json; copy it from the model's original folder."
    assert found == missing or found.startswith("tokenizers, which cuts text into tokens, is miss")
    assert not (tmp_path / "out").exists()


def test_words_that_are_no_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["prune"])
    assert ended.value.code == 2
    assert "prune" in capsys.readouterr().err


NO_MODEL = {
    "eval": "{folder}/config.json is not there; a model is a folder with config.json and "
    "safetensors, or a .gguf file.",
    "inspect": "{folder} holds no model*.safetensors. Pass a folder that jaxprune llm has "
    "finished.",
}


@pytest.mark.parametrize(("command", "more"), [("eval", ["--eval", "x.npz"]), ("inspect", [])])
def test_a_folder_without_a_model(
    command: str, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([command, str(tmp_path), *more]) == 1
    assert complaint(capsys) == NO_MODEL[command].replace("{folder}", str(tmp_path))


def test_inspect_names_a_damaged_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"[junk]")
    assert main(["inspect", str(tmp_path)]) == 1
    found = complaint(capsys)
    assert found.startswith(f"{file} cannot be read (")
    assert found.endswith("). Write or download it again.")


def test_a_message_keeps_its_brackets(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(tmp_path / "[bold]x[/]")]) == 1
    assert "/[bold]x[/] holds no model" in complaint(capsys)
