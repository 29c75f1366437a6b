"""Greedy decoding with a cache against the whole text read anew for every token."""

import dataclasses

import numpy as np
import pytest

from jaxprune import models
from tests.models import reference, tiny

PROMPTS = np.random.default_rng(4).integers(0, 48, (2, 5))
NEW = 7
SETTINGS = tiny.SETTINGS | {"model_type": "mistral", "sliding_window": 6}
TENSORS = tiny.weights(SETTINGS)


def slowly(prompt: np.ndarray) -> list[int]:
    """Greedy decoding with the numpy model, without a cache."""
    text = list(prompt)
    for _ in range(NEW):
        text.append(int(reference.logits(TENSORS, SETTINGS, np.array(text))[-1].argmax()))
    return text[len(prompt) :]


WANT = np.array([slowly(prompt) for prompt in PROMPTS])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> models.Pretrained:
    return models.load(tiny.write(tmp_path_factory.mktemp("m"), SETTINGS, TENSORS))


@pytest.mark.parametrize("stacked", [False, True])
def test_every_token_is_the_most_probable(model: models.Pretrained, stacked: bool):
    assert len(np.unique(WANT)) > 3
    params = models.stack_layers(model.params) if stacked else model.params
    got = models.generate(model.config, params, PROMPTS, max_new_tokens=NEW)
    np.testing.assert_array_equal(got, WANT)


def until(stop: int) -> np.ndarray:
    """The texts with everything after the first stop replaced by it."""
    ended = np.cumsum(stop == WANT, axis=1) > 0
    return np.where(ended, stop, WANT)


def test_each_text_ends_at_its_stop(model: models.Pretrained):
    params = models.stack_layers(model.params)
    one, both = int(WANT[1, 4]), int(WANT[0, 1])
    assert one not in WANT[0]
    assert all(both in row[:-2] for row in WANT)
    config = dataclasses.replace(model.config, eos_token_ids=(one,))
    got = models.generate(config, params, PROMPTS, max_new_tokens=NEW)
    np.testing.assert_array_equal(got, until(one))
    assert not (got == WANT).all()
    early = models.generate(config, params, PROMPTS, max_new_tokens=NEW, stop_at=(both,))
    np.testing.assert_array_equal(early, until(both))
    free = models.generate(config, params, PROMPTS, max_new_tokens=NEW, stop_at=())
    np.testing.assert_array_equal(free, WANT)


def test_one_text_has_no_batch_axis(model: models.Pretrained):
    got = models.generate(model.config, model.params, PROMPTS[0], max_new_tokens=NEW)
    np.testing.assert_array_equal(got, WANT[0])


@pytest.mark.parametrize(
    ("prompt", "limit", "text"),
    [
        ([], 4, "prompt has shape (0,); at least one token is needed to continue from."),
        ([3], 0, "max_new_tokens is 0; it has to be at least 1."),
        (
            [3, 48],
            4,
            "prompt holds token 48, outside the vocabulary of 48; tokenise it with the model's own "
            "tokenizer.",
        ),
        (
            [3] * 10,
            55,
            "prompt has 10 tokens and max_new_tokens is 55, together more than "
            "max_position_embeddings=64; shorten one of them.",
        ),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(
    model: models.Pretrained, prompt: list[int], limit: int, text: str
):
    with pytest.raises(ValueError) as caught:
        models.generate(model.config, model.params, np.array(prompt, int), max_new_tokens=limit)
    assert str(caught.value) == text
