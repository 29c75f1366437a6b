"""Progressive gradient flow: shares and frames at every step, gradients, and what is refused."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import NM, Unstructured
from tests.patterns import references
from tests.third_party import inner

SGD = inner(optax.sgd(0.125))
BEGIN, END = 3, 11
VARIANTS = {
    "mdgf_linear": jaxprune.mdgf_linear,
    "mdgf_exponential": jaxprune.mdgf_exponential,
    "sdgf_stepwise": jaxprune.sdgf_stepwise,
    "sdgf_geometric": jaxprune.sdgf_geometric,
}
each = pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)


def weights(rows: int = 16, seed: int = 0) -> dict[str, jax.Array]:
    return {"kernel": jax.random.normal(jax.random.key(seed), (rows, 2))}


def looking(tx: Any, params: Any) -> Callable[[int], np.ndarray]:
    """Return a function of the step: the weight that the loss sees."""
    state = tx.init(params)

    def look(step: int) -> np.ndarray:
        at = state._replace(step=jnp.asarray(step, jnp.int32))
        return np.asarray(jaxprune.forward_params(params, at)["kernel"])

    return look


def kept(weight: Any, n: int, m: int) -> np.ndarray:
    return references.nm(np.abs(np.asarray(weight)), n, m, (0,))


def linear(since: int) -> float:
    return max(0.0, 1.0 - since / (END - BEGIN))


def exponential(since: int) -> float:
    return float(np.exp(-0.25 * since))


@pytest.mark.parametrize(
    ("make", "settings", "share"),
    [
        (jaxprune.mdgf_linear, {}, linear),
        (jaxprune.mdgf_linear, {"decay": 0.25}, lambda since: max(0.0, 1.0 - 0.25 * since)),
        (jaxprune.mdgf_exponential, {"decay": 0.25}, exponential),
    ],
    ids=["linear", "linear with a rate", "exponential"],
)
def test_pruned_weights_fade_from_one_at_the_begin_to_zero_at_the_end(
    make: Any, settings: Any, share: Callable[[int], float]
):
    params = weights()
    look = looking(make(SGD, NM(1, 4), begin=BEGIN, end=END, **settings), params)
    weight = np.asarray(params["kernel"])
    mask = kept(weight, 1, 4)
    for step in range(END + 2):
        seen = look(step)
        np.testing.assert_array_equal(seen[mask], weight[mask])
        if step <= BEGIN:
            np.testing.assert_array_equal(seen, weight)
        elif step >= END:
            assert (seen[~mask] == 0.0).all()
        else:
            want = weight[~mask] * share(step - BEGIN)
            np.testing.assert_allclose(seen[~mask], want, rtol=1e-5)


# Kept of how many, in each of the steps from BEGIN to END, after the dense phase.
FRAMES = {
    "1:8 stepwise": (jaxprune.sdgf_stepwise, NM(1, 8), [(7, 8)] * 2 + [(4, 8)] * 2 + [(2, 8)] * 2),
    "2:4 stepwise": (jaxprune.sdgf_stepwise, NM(2, 4), [(3, 4)] * 4),
    "3:8 stepwise": (jaxprune.sdgf_stepwise, NM(3, 8), [(7, 8)] * 4),
    "3:4 stepwise": (jaxprune.sdgf_stepwise, NM(3, 4), []),
    "1:2 stepwise": (jaxprune.sdgf_stepwise, NM(1, 2), []),
    "1:2 geometric": (
        jaxprune.sdgf_geometric,
        NM(1, 2),
        [(8, 16)] * 2 + [(4, 8)] * 2 + [(2, 4)] * 2,
    ),
}


@pytest.mark.parametrize(("make", "pattern", "frames"), FRAMES.values(), ids=FRAMES)
def test_frames_follow_each_other_in_equal_lengths(
    make: Any, pattern: NM, frames: list[tuple[int, int]]
):
    params = weights()
    look = looking(make(SGD, pattern, begin=BEGIN, end=END), params)
    frames = frames + [(pattern.n, pattern.m)] * (END + 2 - BEGIN - len(frames))
    for step in range(END + 2):
        seen = look(step)
        if step < BEGIN:
            np.testing.assert_array_equal(seen, params["kernel"])
        else:
            mask = kept(params["kernel"], *frames[step - BEGIN])
            np.testing.assert_array_equal(seen, np.where(mask, params["kernel"], 0.0))


@each
def test_gradients_pass_unscaled_and_the_same_inside_and_outside(make: Any):
    params, x = weights(), jax.random.normal(jax.random.key(1), (4, 16))
    state = make(SGD, NM(1, 2), begin=0, end=4).init(params)
    state = state._replace(step=jnp.asarray(2, jnp.int32))

    def loss_fn(p: Any) -> jax.Array:
        return jnp.mean(jnp.tanh(x @ p["kernel"]) ** 2)

    inside = jax.grad(lambda p: loss_fn(jaxprune.forward_params(p, state)))(params)
    _, outside = jaxprune.value_and_grad(loss_fn)(params, state)
    seen = jaxprune.forward_params(params, state)
    assert (np.asarray(seen["kernel"]) != np.asarray(params["kernel"])).any()
    jax.tree.map(np.testing.assert_array_equal, inside, outside)
    jax.tree.map(np.testing.assert_array_equal, inside, jax.grad(loss_fn)(seen))


@each
def test_the_export_has_the_hard_mask_at_any_step(make: Any):
    params = weights()
    state = make(SGD, NM(1, 2), begin=2, end=4).init(params)
    assert jaxprune.forward_params(params, state)["kernel"].all()  # still dense
    want = np.where(kept(params["kernel"], 1, 2), params["kernel"], 0.0)
    np.testing.assert_array_equal(jaxprune.final_params(params, state)["kernel"], want)
    (problem,) = jaxprune.check(params, state).problems
    assert "before the schedule's end at step 4" in problem


@each
def test_layers_have_their_own_patterns_and_some_are_stacked(make: Any):
    params = {
        "blocks": {"kernel": jax.random.normal(jax.random.key(2), (2, 16, 2))},
        "head": {"kernel": jax.random.normal(jax.random.key(3), (32, 3))},
    }
    pattern = {"head": NM(1, 4), "blocks": NM(1, 2)}
    tx = make(SGD, pattern, begin=0, end=8, layers={"blocks": 0})
    state = tx.init(params)._replace(step=jnp.asarray(8, jnp.int32))
    seen = jaxprune.forward_params(params, state)
    for layer in range(2):
        weight = params["blocks"]["kernel"][layer]
        want = np.where(kept(weight, 1, 2), weight, 0.0)
        np.testing.assert_array_equal(seen["blocks"]["kernel"][layer], want)
    weight = params["head"]["kernel"]
    np.testing.assert_array_equal(seen["head"]["kernel"], np.where(kept(weight, 1, 4), weight, 0.0))


@pytest.mark.parametrize(("begin", "end"), [(5, 5), (5, 3)])
@each
def test_an_end_before_the_begin(make: Any, begin: int, end: int):
    with pytest.raises(ValueError) as error:
        make(SGD, NM(1, 4), begin=begin, end=end)
    assert str(error.value) == (
        f"end must be after begin, got begin={begin}, end={end}. Between these steps of the "
        "optimizer the pattern takes hold: train longer, or begin earlier."
    )


def test_steps_that_are_none():
    with pytest.raises(ValueError) as error:
        jaxprune.sdgf_stepwise(SGD, NM(1, 4), begin=-2, end=4)
    assert str(error.value) == "begin must be a step of 0 or more, got -2."
    with pytest.raises(TypeError) as wrong:
        jaxprune.sdgf_stepwise(SGD, NM(1, 4), begin=0, end=4.0)
    assert str(wrong.value) == "end must be a step, an integer, got 4.0 of type float."


@pytest.mark.parametrize("decay", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("make", [jaxprune.mdgf_linear, jaxprune.mdgf_exponential])
def test_a_decay_out_of_range(make: Any, decay: float):
    with pytest.raises(ValueError) as error:
        make(SGD, NM(1, 4), begin=0, end=4, decay=decay)
    assert str(error.value) == (
        f"decay must be a finite number above 0, got {decay}. It is the rate at which pruned "
        "weights fade in a step; the paper uses 2e-4."
    )


WHERE = "or exclude this parameter with where=."
MISFITS = {
    "longer groups": (
        jaxprune.sdgf_geometric,
        NM(1, 4),
        "the first frame of sdgf_geometric: NM(n=8, m=32) does not fit 'kernel' of shape (16, 2): "
        f"axis 0 has length 16, not a multiple of 32. Pass pad=True, another axis, {WHERE}",
    ),
    "its own groups": (
        jaxprune.mdgf_linear,
        {"kernel": NM(1, 5)},
        "NM(n=1, m=5) does not fit 'kernel' of shape (16, 2): axis 0 has length 16, not a multiple "
        f"of 5. Pass pad=True, another axis, {WHERE}",
    ),
    "no sparsity": (
        jaxprune.mdgf_linear,
        {"kernel": Unstructured()},
        "pattern=Unstructured() of 'kernel' has no sparsity of its own. Pass NM(n, m), or "
        f"{{regex: NM(n, m)}}, {WHERE}",
    ),
}


@pytest.mark.parametrize(("make", "pattern", "text"), MISFITS.values(), ids=MISFITS)
def test_a_layer_that_the_pattern_does_not_fit_is_named(make: Any, pattern: Any, text: str):
    with pytest.raises(ValueError) as error:
        make(SGD, pattern, begin=0, end=4).init(weights())
    assert str(error.value) == text


class Halves:
    """A pattern with a sparsity of its own, but no n and m."""

    final_sparsity = 0.5

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        del path, shape

    def __repr__(self) -> str:
        return "Halves()"


def test_frames_need_groups():
    with pytest.raises(ValueError) as error:
        jaxprune.sdgf_stepwise(SGD, {"kernel": Halves()}, begin=0, end=4).init(weights())
    assert str(error.value) == (
        "sdgf_stepwise needs NM(n, m) for 'kernel', got Halves(). Pass one, or exclude this "
        "parameter with where=."
    )
