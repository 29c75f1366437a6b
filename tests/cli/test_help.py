"""What ``--help`` shows."""

import subprocess
import sys

import pytest

from jaxprune.cli import main


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]):
    text = shown(capsys)
    assert text.startswith("usage: jaxprune [-h] {llm,eval,inspect,bench}")
    for line in (
        "Prune a language model in one shot, and measure what it lost.",
        "Measure the perplexity of a language model on a text.",
    ):
        assert line in text


def test_help_of_llm_names_every_choice_in_plain_words(capsys: pytest.CaptureFixture[str]):
    text = shown(capsys, "llm")
    for words in (
        "--calibration PATH",
        "--method {magnitude,wanda,ria,gblm,dpruner,sparsegpt,admm,alps}",
        "--pattern unstructured|N:M",
        "--sparsity FLOAT",
        "--resume ",
    ):
        assert words in text
    for mark in ("``", "{None}", "--no-", ":py:", "Args"):
        assert mark not in text


@pytest.mark.slow  # a process of its own
def test_it_runs_as_a_module():
    words = [sys.executable, "-m", "jaxprune.cli", "inspect", "no/such/folder"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: no/such/folder holds no model")
