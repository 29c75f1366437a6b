"""FinerCut: which sublayers go first, and the distances that decide it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import models, posttraining
from tests.graph import stacks
from tests.graph.cases import inputs

BATCHES = [inputs(2, 3, 4, seed=seed) for seed in (1, 2)]
SCALES = (1.0, 0.0, 0.3, -0.6, 0.1)
NAMES = ("a", "b", "c", "d", "e")


class Model:
    """Residual sublayers of different weight; counts how often it is traced."""

    def __init__(self) -> None:
        self.traced = 0

    def __call__(self, params: Any, x: jax.Array, skip: jax.Array) -> jax.Array:
        self.traced += 1
        return outputs(params, x, skip)


def outputs(params: Any, x: jax.Array, skip: Any) -> jax.Array:
    for i, layer in enumerate(params):
        x = x + jnp.where(skip[i], jnp.zeros_like(x), jnp.tanh(x @ layer))
    return x


model = Model()


def layers() -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(s * rng.normal(size=(4, 4)), jnp.float32) for s in SCALES]


def by_hand(distance: Callable[..., jax.Array]) -> list[tuple[int, float]]:
    """The greedy search with a forward pass for each candidate."""
    params, gone, found = layers(), list[int](), list[tuple[int, float]]()

    def without(skipped: list[int], x: jax.Array) -> jax.Array:
        return outputs(params, x, [i in skipped for i in range(5)])

    for _ in SCALES:
        open_ = [i for i in range(5) if i not in gone]
        each = [
            np.mean([float(distance(without([], x), without([*gone, i], x))) for x in BATCHES])
            for i in open_
        ]
        best = int(np.argmin(each))
        gone.append(open_[best])
        found.append((open_[best], float(each[best])))
    return found


@pytest.fixture(scope="module")
def ranking() -> posttraining.Ranking:
    seen = list[posttraining.Removal]()
    found = posttraining.finercut(model, layers(), BATCHES, NAMES, progress=seen.append)
    assert model.traced == 2  # the whole model, and all candidates of all rounds
    assert list(found.removed) == seen
    return found


def test_the_least_change_goes_first(ranking: posttraining.Ranking) -> None:
    seen, want = ranking.removed, by_hand(posttraining.reverse_js_divergence)
    assert [one.number for one in seen] == [number for number, _ in want]
    assert [one.name for one in seen] == [NAMES[number] for number, _ in want]
    np.testing.assert_allclose(
        [one.distance for one in seen], [d for _, d in want], rtol=1e-3, atol=1e-7
    )


def test_a_sublayer_that_adds_nothing_goes_first_at_no_distance(
    ranking: posttraining.Ranking,
) -> None:
    assert ranking.removed[0].name == "b"
    assert ranking.removed[0].distance == pytest.approx(0.0, abs=1e-12)
    assert [one.distance > 0 for one in ranking.removed[1:]] == [True] * 4


def test_what_a_count_leaves_out(ranking: posttraining.Ranking) -> None:
    assert not ranking.skip(0).any()
    assert ranking.skip(5).all()
    two = {one.number for one in ranking.removed[:2]}
    assert {int(i) for i in np.flatnonzero(ranking.skip(2))} == two
    few = posttraining.finercut(model, layers(), BATCHES, NAMES, count=2)
    assert few.removed == ranking.removed[:2]


@pytest.mark.slow  # compiles the model once more, for candidates side by side
def test_side_by_side_is_the_same(ranking: posttraining.Ranking) -> None:
    found = posttraining.finercut(outputs, layers(), BATCHES, NAMES, together=4, count=3)
    assert [one.number for one in found.removed] == [one.number for one in ranking.removed[:3]]


def test_the_front_is_spared_until_others_are_gone() -> None:
    # ⌊5 · 0.4⌋ + 1 = 3 have to go first, and 2 · (⌊5 · 0.4 / 2⌋ + 1) = 4 are spared: there is
    # only one behind them.
    found = posttraining.finercut(model, layers(), BATCHES, NAMES, front=0.4, count=2)
    assert [one.name for one in found.removed] == ["e", "b"]
    # ⌊5 · 0.1⌋ + 1 = 1 has to go before the first two are candidates.
    found = posttraining.finercut(model, layers(), BATCHES, NAMES, front=0.1, count=2)
    assert found.removed[0].name != "b"
    assert found.removed[1].name == "b"


def test_equal_distances_go_to_the_first() -> None:
    params = [jnp.zeros((4, 4))] * 5
    found = posttraining.finercut(model, params, BATCHES, NAMES, count=3)
    assert [one.name for one in found.removed] == ["a", "b", "c"]


DISTANCES: dict[str, Any] = {
    "reverse_js_divergence": lambda p, q, m: (m * (np.log(m / p) + np.log(m / q)) / 2).mean(),
    "js_divergence": lambda p, q, m: ((p * np.log(p / m) + q * np.log(q / m)) / 2).mean(),
    "kl_divergence": lambda p, q, m: (p * np.log(p / q)).mean(),
}


@pytest.mark.parametrize("name", DISTANCES)
def test_divergences_of_the_softmax(name: str) -> None:
    a, b = (np.asarray(x, np.float64) for x in BATCHES)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (a, b))
    distance = getattr(posttraining, name)
    want = DISTANCES[name](p, q, (p + q) / 2)
    np.testing.assert_allclose(distance(*BATCHES), want, rtol=1e-4)
    assert float(distance(BATCHES[0], BATCHES[0])) == 0.0
    shifted = BATCHES[0] + 2.0 * jnp.arange(3.0)[None, :, None]  # a constant for each token
    assert abs(float(distance(BATCHES[0], shifted))) < 1e-6
    symmetric = abs(float(distance(*BATCHES)) - float(distance(*BATCHES[::-1]))) < 1e-6
    assert symmetric == (name != "kl_divergence")


def test_distances_of_vectors() -> None:
    a, b = (np.asarray(x, np.float64) for x in BATCHES)
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert (cosine < 0).any()
    want = np.arccos(np.clip(cosine, 0, 1)).mean()
    np.testing.assert_allclose(posttraining.angular_distance(*BATCHES), want, rtol=1e-5)
    want = np.linalg.norm((a - b).reshape(2, -1), axis=1).mean()
    np.testing.assert_allclose(posttraining.euclidean_distance(*BATCHES), want, rtol=1e-5)


def llama(stacked: bool) -> tuple[Any, Any, jax.Array]:
    config = models.LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=12, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4, attention_bias=True,
    )  # fmt: skip
    shapes = jax.eval_shape(lambda: models.init_llama(config, jax.random.key(0), stacked=stacked))
    params = jax.tree.map(lambda leaf: jnp.asarray(np.full(leaf.shape, 0.1, np.float32)), shapes)
    return models.llama(config), params, jnp.arange(6)[None]


@pytest.mark.parametrize("stacked", [False, True])
def test_sublayers_of_a_llama_in_order_of_depth(stacked: bool) -> None:
    fn, params, tokens = llama(stacked)
    parts = posttraining.sublayers(jaxprune.trace(fn, params, tokens))
    names = [f"layers{{}}/{n}{{}}" for n in ("self_attn/o_proj", "mlp/down_proj")]
    want = [
        name.format("" if stacked else f"_{i}", f"[{i}]" if stacked else "")
        for i in range(3)
        for name in names
    ]
    assert list(parts.names) == want
    skip = np.zeros(6, bool)
    skip[[4, 3]] = True  # attention of block 2, feed-forward of block 1
    found = parts.remove(params, skip)

    def leaf(i: int, *names: str) -> Any:
        node = found["layers"] if stacked else found[f"layers_{i}"]
        for name in names:
            node = node[name]
        return node[i] if stacked else node

    zero = [
        [bool((leaf(i, *names) == 0).all()) for i in range(3)]
        for names in (
            ("self_attn", "o_proj", "kernel"),
            ("self_attn", "o_proj", "bias"),
            ("mlp", "down_proj", "kernel"),
            ("mlp", "up_proj", "kernel"),
        )
    ]
    attention, feed_forward = [i == 2 for i in range(3)], [i == 1 for i in range(3)]
    assert zero == [attention, attention, feed_forward, [False] * 3]


def test_a_closed_sublayer_is_one_that_is_not_there() -> None:
    stack = stacks.unrolled()
    graph = jaxprune.trace(stack.fn, stack.params, *stack.inputs)
    parts = posttraining.sublayers(graph, where="/down$")
    assert parts.names == ("blocks/0/down", "blocks/1/down", "blocks/2/down")
    without = stack.params | {"blocks": [stack.params["blocks"][i] for i in (0, 2)]}
    skip = jnp.asarray([False, True, False])
    (x,) = stack.inputs
    np.testing.assert_array_equal(parts(stack.params, x, skip), stack.fn(without, x))
    ranking = posttraining.finercut(parts, stack.params, [(x,)], parts.names, count=1)
    assert ranking.removed[0].distance > 0


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no batch": ({"batches": []}, "batches is empty. Give at least one batch of fn."),
    "no name": (
        {"names": []},
        "names is empty. Give one name for each sublayer that may be removed.",
    ),
    "too many": (
        {"count": 6},
        "count must be in [0, 5], the number of candidates; got 6.",
    ),
    "all of the front": (
        {"front": 1.0},
        "front must be in [0, 1), got 1.0: the share of sublayers that are spared.",
    ),
    "together": (
        {"together": 0},
        "together must be 1 or more, got 0: candidates that are run side by side.",
    ),
    "not finite": (
        {"params": [layers()[0], jnp.full((4, 4), jnp.nan), *layers()[2:]]},
        "the outputs' distance without 'a' is not finite. Look at the model's outputs on the "
        "batches, and take another distance= where outputs are -inf on purpose.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_ranked(case: str) -> None:
    changed, text = WRONG[case]
    given: dict[str, Any] = {"params": layers(), "batches": BATCHES, "names": NAMES} | changed
    with pytest.raises(ValueError) as caught:
        posttraining.finercut(model, **given)
    assert str(caught.value) == text


def test_more_than_were_ranked(ranking: posttraining.Ranking) -> None:
    with pytest.raises(ValueError) as caught:
        ranking.skip(6)
    assert str(caught.value) == (
        "count must be in [0, 5], the sublayers that were ranked; got 6. Rank more with "
        "finercut(count=...)."
    )


def test_no_such_projection() -> None:
    stack = stacks.unrolled()
    graph = jaxprune.trace(stack.fn, stack.params, *stack.inputs)
    with pytest.raises(ValueError) as caught:
        posttraining.sublayers(graph)
    assert str(caught.value) == (
        r"where='(^|/)(o_proj|down_proj)/' is found in none of the 8 parameters (blocks/0/down, "
        "blocks/0/up, blocks/1/down, blocks/1/up, blocks/2/down, blocks/2/up, first, last). Name "
        "the projections whose output is added to the residual stream."
    )
