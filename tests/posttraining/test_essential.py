"""The sweep of magnitude sparsities: where a planted solution breaks, and how it is told."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import posttraining

LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8)


def planted() -> Any:
    """Two layers that are 60% sparse, but for noise of 1e-4, in one ranking and in each."""
    rng = np.random.default_rng(0)

    def layer(shape: tuple[int, int]) -> Any:
        size = rng.uniform(0.5, 1.0, shape) * rng.choice([-1.0, 1.0], shape)
        zero = rng.permutation(size.size).reshape(shape) < 0.6 * size.size
        noise = 1e-4 * rng.normal(size=shape)
        return {"kernel": jnp.asarray(np.where(zero, noise, size), jnp.float32)}

    return {"first": layer((10, 10)), "second": layer((10, 20))}


def score_of(params: Any) -> Any:
    """Minus the error of the outputs."""
    x = np.random.default_rng(1).normal(size=(16, 10))

    def outputs(p: Any) -> Any:
        return x @ np.asarray(p["first"]["kernel"]) @ np.asarray(p["second"]["kernel"])

    want = outputs(params)
    return lambda pruned: -np.mean((outputs(pruned) - want) ** 2)


def test_a_planted_solution_breaks_behind_its_sparsity() -> None:
    params = planted()
    told: list[tuple[float, float]] = []
    found = posttraining.essential_sparsity(
        params, score_of(params), LEVELS, tolerance=1e-3, done=lambda *it: told.append(it)
    )
    assert (found.threshold, found.knee) == (0.6, 0.6)
    assert found.scores[0] == 0.0 > found.scores[3] > -1e-3
    assert found.scores[4] < 10 * found.scores[3]
    assert told == list(zip(LEVELS, found.scores, strict=True))


def test_each_level_starts_from_the_dense_model_in_one_ranking() -> None:
    params, zeros = planted(), list[list[int]]()

    def evaluate(pruned: Any) -> float:
        zeros.append([int((pruned[n]["kernel"] == 0).sum()) for n in ("first", "second")])
        return 0.0

    scaled = params | {"first": {"kernel": 3.0 * params["first"]["kernel"]}}
    posttraining.essential_sparsity(params, evaluate, (0.0, 0.5, 0.505))
    posttraining.essential_sparsity(scaled, evaluate, (0.0, 0.7, 0.75))
    assert [sum(pair) for pair in zeros] == [0, 150, 152, 0, 210, 225]  # round(151.5) is even
    assert zeros[4][0] < 70 < 140 < zeros[4][1]  # the larger layer keeps more of itself


def sweep(scores: list[float], **more: Any) -> posttraining.Essential:
    left, levels = iter(scores), [0.1 * i for i in range(len(scores))]
    return posttraining.essential_sparsity(
        planted(), lambda params: next(left), levels, prune=lambda p, s: p, **more
    )


def test_another_way_to_prune() -> None:
    asked: list[float] = []

    def prune(params: Any, level: float) -> Any:
        asked.append(level)
        return params | {"second": None}

    found = posttraining.essential_sparsity(
        planted(), lambda params: float(params["second"] is not None), LEVELS, prune=prune
    )
    assert asked == list(LEVELS[1:])  # the dense model is not pruned
    assert found.scores == (1.0, 0.0, 0.0, 0.0, 0.0)


def test_threshold_and_knee_of_given_scores() -> None:
    found = sweep([0.9, 0.895, 0.895, 0.80, 0.895, 0.3])
    assert found.threshold == pytest.approx(0.2)  # what comes back behind a drop does not count
    assert found.knee == pytest.approx(0.4)
    assert sweep([0.9, 0.8, 0.7], tolerance=0.5).threshold == pytest.approx(0.2)
    assert sweep([0.9, 0.8, 0.7]).threshold == 0.0


WRONG: list[tuple[Any, str]] = [
    (
        {"levels": (0.0, 0.5)},
        "levels must be three or more sparsities that ascend from 0, the dense model; got "
        "[0.0, 0.5].",
    ),
    (
        {"levels": (0.1, 0.5, 0.6)},
        "levels must be three or more sparsities that ascend from 0, the dense model; got "
        "[0.1, 0.5, 0.6].",
    ),
    (
        {"levels": (0.0, 0.5, 0.5)},
        "levels must be three or more sparsities that ascend from 0, the dense model; got "
        "[0.0, 0.5, 0.5].",
    ),
    (
        {"levels": (0.0, 0.5, 1.0)},
        "levels must be a finite number in [0, 1), got 1.0. A sparsity is the share of zeros: 0.9 "
        "prunes 90% of the weights.",
    ),
    ({"tolerance": -1.0}, "tolerance must be 0 or more, got -1.0: what may be lost."),
    (
        {"evaluate": lambda params: float("nan")},
        "evaluate returned nan at level 0. Return a finite figure, such as a mean loss in place of "
        "a perplexity, or leave the level out.",
    ),
]


@pytest.mark.parametrize(("changed", "text"), WRONG)
def test_what_cannot_be_swept(changed: Any, text: str) -> None:
    given = {"evaluate": lambda params: 0.0, "levels": LEVELS} | changed
    with pytest.raises(ValueError) as caught:
        posttraining.essential_sparsity(planted(), **given)
    assert str(caught.value) == text
