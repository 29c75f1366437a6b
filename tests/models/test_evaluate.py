"""Perplexity against numpy, at the anchors' convention; text and windows that are refused."""

import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import models
from jaxprune.models import evaluate
from tests.models import reference, tiny

TEXT = np.random.default_rng(2).integers(0, tiny.SETTINGS["vocab_size"], 40)


def table(params: jax.Array, tokens: jax.Array) -> jax.Array:
    """A model that reads its logits from a table, by the last token: cheap to compile."""
    return params[tokens]


TABLE = jnp.asarray(np.random.default_rng(3).normal(size=(48, 48)).astype(np.float32))


def by_hand(windows: np.ndarray) -> np.ndarray:
    """The mean loss of each window, in float64."""
    logits = np.asarray(TABLE, np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.array([-np.mean([logp[a, b] for a, b in itertools.pairwise(w)]) for w in windows])


def test_a_text_is_cut_into_whole_windows_that_predict_all_but_their_first():
    got = models.perplexity(table, TABLE, TEXT, context=9)
    losses = by_hand(TEXT[:36].reshape(4, 9))
    np.testing.assert_allclose(got.per_window, np.exp(losses), rtol=1e-6)
    assert math.isclose(got.value, math.exp(losses.mean()), rel_tol=1e-6)
    assert got.predictions == 4 * 8
    windows = models.perplexity(table, TABLE, TEXT[:36].reshape(4, 9))
    assert windows.value == got.value


def test_batches_do_not_matter_and_progress_is_told():
    told: list[tuple[int, int, float]] = []
    one = models.perplexity(table, TABLE, TEXT, context=8)
    three = models.perplexity(
        table, TABLE, TEXT, context=8, batch_size=3, progress=lambda *now: told.append(now)
    )
    np.testing.assert_allclose(one.per_window, three.per_window, rtol=1e-6)
    assert [now[:2] for now in told] == [(3, 5), (5, 5)]
    assert told[-1][2] == three.value


def test_the_models_own_perplexity_is_the_formulas(tmp_path: Path):
    tensors = tiny.weights(tiny.SETTINGS)
    config, params = models.load(tiny.write(tmp_path, tiny.SETTINGS, tensors), stacked=True)
    got = models.perplexity(models.llama(config), params, TEXT, context=10)
    total = 0.0
    for window in TEXT.reshape(4, 10):
        logits = reference.logits(tensors, tiny.SETTINGS, window)[:-1]
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total -= logp[np.arange(9), window[1:]].mean()
    assert math.isclose(got.value, math.exp(total / 4), rel_tol=1e-5)


def test_a_second_call_compiles_nothing():
    models.perplexity(table, TABLE, TEXT, context=7)
    before = evaluate._losses._cache_size()
    models.perplexity(table, TABLE + 1.0, TEXT, context=7)
    assert evaluate._losses._cache_size() == before


def test_a_model_that_rules_the_text_out_has_infinite_perplexity():
    sure = jnp.full((48, 48), -1e6).at[:, 0].set(0.0)
    assert models.perplexity(table, sure, np.full(8, 5), context=4).value == math.inf
    assert math.isnan(models.perplexity(table, TABLE * jnp.nan, TEXT, context=4).value)


@pytest.mark.parametrize(
    ("tokens", "context", "text"),
    [
        (
            np.array([1, 2, 48]),
            3,
            "token 48 at place 2 of window 0 is outside the vocabulary of 48; tokenise the text "
            "with the model's own tokenizer.",
        ),
        (
            np.array([[1, 2], [-1, 2]]),
            None,
            "token -1 at place 0 of window 1 is outside the vocabulary of 48; tokenise the text "
            "with the model's own tokenizer.",
        ),
        (
            np.array([1, 2]),
            3,
            "context is 3 and the text has 2 tokens; a window has at least 2 tokens, and the text "
            "at least one window.",
        ),
        (
            np.array([1, 2]),
            None,
            "tokens have shape (2,) and context is None; pass a text (n,) with a context, or "
            "windows (windows, length) without.",
        ),
        (
            np.zeros((3, 1), int),
            None,
            "tokens have shape (3, 1); at least one window of 2 tokens is needed.",
        ),
        (np.ones(4), 2, "tokens have dtype float64; they have to be integers."),
    ],
)
def test_tokens_that_cannot_be_evaluated_are_refused(
    tokens: np.ndarray, context: int | None, text: str
):
    with pytest.raises(ValueError) as caught:
        models.perplexity(table, TABLE, tokens, context=context)
    assert str(caught.value) == text


def test_a_batch_has_a_window():
    with pytest.raises(ValueError) as caught:
        models.perplexity(table, TABLE, TEXT, context=4, batch_size=0)
    assert str(caught.value) == "batch_size is 0; it has to be at least 1."
