"""The pretrained SmolLM2-135M on real text.

Expected figures are those of transformers 4.46.3 with torch 2.13 on the same weights and tokens
(`windows`), and of a plain JAX forward pass (`wrapped`). `windows` are the first 8 × 512 tokens of
Austen's Persuasion from `Chapter 1` on, its lines joined; `wrapped` are the first 4,097 tokens of
the file as it is, title included.
"""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxprune import models
from tests.models.real import TEXT, weights_probe

PER_WINDOW = (34.603622, 47.218627, 51.779452, 62.042465, 36.087859, 52.837198, 48.434065)
DENSE = 46.08176407004439  # over all eight windows
WRAPPED = 38.636

QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
ASKED = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
ANSWER = [504, 3575, 282, 4649, 314, 7042, 30]  # The capital of France is Paris.


def tokenizer_probe() -> str | None:
    if importlib.util.find_spec("tokenizers") is None:
        return "tokenizers is not installed; `pip install jaxprune[text]`"
    return weights_probe()


@pytest.fixture(scope="module")
def model() -> models.Pretrained:
    return models.load(models.fetch_smollm2(download=False), stacked=True)


@pytest.fixture(scope="module")
def text() -> dict[str, np.ndarray]:
    with np.load(TEXT) as stored:
        return {name: stored[name].astype(np.int32) for name in stored.files}


@pytest.mark.real.with_args(weights_probe)  # a mark called with one function decorates it
def test_one_window_has_the_perplexity_of_transformers(
    model: models.Pretrained, text: dict[str, np.ndarray]
):
    assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) == 134_515_008
    apply = models.llama(model.config)
    got = models.perplexity(apply, model.params, text["windows"][0], context=512)
    np.testing.assert_allclose(got.value, PER_WINDOW[0], rtol=1e-5)


@pytest.mark.slow  # half a minute of matrix products
@pytest.mark.real.with_args(weights_probe)
def test_all_windows_have_the_perplexity_of_transformers(
    model: models.Pretrained, text: dict[str, np.ndarray]
):
    apply = models.llama(model.config)
    got = models.perplexity(apply, model.params, text["windows"])
    np.testing.assert_allclose(got.value, DENSE, rtol=1e-5)
    np.testing.assert_allclose(got.per_window[:7], PER_WINDOW, rtol=1e-5)
    overlapping = np.stack([text["wrapped"][at : at + 513] for at in range(0, 4096, 512)])
    plain = models.perplexity(apply, model.params, overlapping)
    assert plain.predictions == 4096
    np.testing.assert_allclose(plain.value, WRAPPED, atol=1e-3)


@pytest.mark.slow  # compiles the prompt and the loop, with all blocks
@pytest.mark.real.with_args(weights_probe)
def test_it_knows_the_capital_of_france(model: models.Pretrained):
    got = models.generate(model.config, model.params, np.array(ASKED), max_new_tokens=10)
    assert np.asarray(got).tolist() == [*ANSWER, 2, 2, 2]


@pytest.mark.slow  # writes and reads half a gigabyte
@pytest.mark.real.with_args(weights_probe)
def test_it_comes_back_from_a_folder(model: models.Pretrained, tmp_path: Path):
    models.save(tmp_path, model.config, model.params, shard_bytes=200_000_000)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    again = models.load(tmp_path, stacked=True)
    assert again.config == model.config
    same: Any = jax.tree.map(lambda a, b: bool((a == b).all()), again.params, model.params)
    assert jax.tree.all(same)


@pytest.mark.real.with_args(tokenizer_probe)
def test_its_tokenizer_cuts_text_as_the_original_does(
    model: models.Pretrained, tmp_path: Path, text: dict[str, np.ndarray]
):
    tokenizer = models.load_tokenizer(models.fetch_smollm2(download=False))
    assert models.tokenize(tokenizer, QUESTION).tolist() == ASKED
    assert tokenizer.decode(ANSWER) == "The capital of France is Paris."
    odd = "It's 2024: naïve cafés cost $3.50!\n\tdef f(x): return x"
    ids = models.tokenize(tokenizer, odd)
    assert ids[:8].tolist() == [1589, 506, 216, 34, 32, 34, 36, 42]
    assert tokenizer.decode(ids) == odd
    novel = tokenizer.decode(text["wrapped"])
    assert novel.startswith("Persuasion\n\n\nby\n\nJane Austen")
    assert models.tokenize(tokenizer, novel).tolist() == text["wrapped"].tolist()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = models.load_tokenizer(tmp_path)
    assert models.tokenize(again, odd).tolist() == ids.tolist()
