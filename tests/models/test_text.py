"""Text: line wrapping, windows, and what is said without the library or the files."""

import sys
from pathlib import Path

import numpy as np
import pytest

from jaxprune import models
from tests.models import gguf_file


def test_lines_are_joined_and_paragraphs_kept():
    text = "A\nb c\n\nD\n\n\n\ne\nf"
    assert models.unwrap(text) == "A b c\n\nD\n\ne f"
    assert models.unwrap(models.unwrap(text)) == models.unwrap(text)


def test_windows_start_at_even_distances():
    got = models.even_windows(np.arange(107), count=3, length=10)
    assert got[:, 0].tolist() == [0, 32, 64]
    assert (np.diff(got, axis=1) == 1).all()
    whole = models.even_windows(np.arange(10), count=2, length=10)
    assert whole[:, 0].tolist() == [0, 0]


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError) as caught:
        models.even_windows(np.arange(9), count=2, length=10)
    assert str(caught.value) == (
        "tokens are 9, fewer than one window of 10; pass a longer text or shorter windows."
    )
    with pytest.raises(ValueError, match=r"^count=0 and length=10 have to be at least 1\.$"):
        models.even_windows(np.arange(20), count=0, length=10)


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_an_empty_text_is_refused(text: str):
    with pytest.raises(ValueError) as caught:
        models.tokenize(None, text)
    assert str(caught.value) == (f"text has {len(text)} characters and no word; pass real text.")


def test_without_the_library_its_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError) as caught:
        models.load_tokenizer(tmp_path)
    assert str(caught.value) == (
        "tokenizers, which cuts text into tokens, is missing; install it with `pip install "
        "jaxprune[text]`."
    )


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tokenizers", pytest)  # anything that can be imported
    with pytest.raises(FileNotFoundError) as caught:
        models.load_tokenizer(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no tokenizer.json; copy it from the model's original folder."
    )


def test_another_tokenizer_in_a_gguf_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "tokenizers", pytest)
    kind = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
    file = gguf_file.write(tmp_path / "m.gguf", kind, {})
    with pytest.raises(ValueError) as caught:
        models.load_tokenizer(file)
    assert str(caught.value) == (
        f"{file} has a tokenizer of kind ('llama', 'default'); only SmolLM2's, ('gpt2', 'smollm'), "
        "is read from a GGUF file. Pass a folder with tokenizer.json."
    )
