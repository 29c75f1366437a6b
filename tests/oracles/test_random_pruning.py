"""Layer ratios as the random-pruning paper's code computes them."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxprune
from jaxprune import allocation, initial, scores
from jaxprune.types import Shapes
from tests.oracles import exact

TOLERANCE = 1e-6
OF_SCORES = 1e-4  # of the largest: theirs are float32
Recorded = Callable[[str], Any]
RULES = {
    "ER": allocation.erdos_renyi,
    "ERK": allocation.erdos_renyi_kernel,
    "uniform": allocation.uniform,
}


def number(text: str) -> float:
    return float(text.replace("p", "."))


def shapes_of(rows: np.ndarray, *, linear_last: bool = True) -> Shapes:
    """OIHW as HWIO, so that the last two axes are those of the input and the output."""
    shapes = {str(i): (h, w, n_in, out) for i, (out, n_in, h, w) in enumerate(rows.tolist())}
    last = str(len(shapes) - 1)
    return shapes | ({last: shapes[last][2:]} if linear_last else {})


def networks(data: Any, rule: str) -> Iterator[tuple[str, float, Shapes]]:
    for match in data.matches(rf"(w\d+_d([^_]+)_{rule})_shapes"):
        yield match[1], number(match[2]), shapes_of(data[match[0]])


@pytest.mark.parametrize("rule", RULES)
def test_the_densities_are_ours(recorded: Recorded, rule: str):
    data = recorded("random_pruning")
    for name, density, shapes in networks(data, rule):
        ours = list(RULES[rule](shapes, 1.0 - density).values())
        np.testing.assert_allclose(ours, data[f"{name}_density"], rtol=TOLERANCE)


def test_uniform_plus_is_ours_where_their_budget_is_corrected(recorded: Recorded):
    data = recorded("random_pruning")
    ours = allocation.uniform_plus(first="^0$", last="^4$", min_last=data.settings["fc_floor"])
    for name, density, shapes in networks(data, "uniform_plus"):
        assert max(map(int, shapes)) == 4
        np.testing.assert_array_equal(data[f"{name}_has_mask"], [False, *[True] * 4])
        sizes = [math.prod(shape) for shape in shapes.values()]
        theirs, floor = float(data[f"{name}_density_attr"]), max(density, ours.last_density)
        if density < ours.last_density:
            # They divide what is left for the middle by the number of all weights.
            middle = theirs * sum(sizes) / sum(sizes[1:-1])
        else:
            # They leave the middle at the overall density, and the first layer dense on top.
            assert theirs == density
            middle = density - (1.0 - density) * sizes[0] / sum(sizes[1:-1])
        if middle <= 0.0:
            with pytest.raises(ValueError, match="uniform_plus cannot reach"):
                ours(shapes, 1.0 - density)
            continue
        want = [1.0, *[middle] * (len(sizes) - 2), floor]
        np.testing.assert_allclose(list(ours(shapes, 1.0 - density).values()), want, rtol=1e-9)


def test_their_global_magnitude_keeps_as_many_of_each_layer(recorded: Recorded):
    data = recorded("random_pruning")
    for name, _, shapes in networks(data, "global_magnitude"):
        weights = {path: jnp.asarray(data[f"{name}_w{path}"]) for path in shapes}
        kept = data[f"{name}_keep"]
        target = exact.sparsity(int(kept.sum()), sum(leaf.size for leaf in weights.values()))
        _, masks = jaxprune.prune(weights, target, allocation=allocation.global_(), where=".*")
        assert [int(masks[path].sum()) for path in shapes] == kept.tolist()


@pytest.mark.parametrize("rule", ["ER", "ERK", "uniform"])
def test_their_bernoulli_counts_are_likely_under_ours(recorded: Recorded, rule: str):
    data = recorded("random_pruning")
    for name, density, shapes in networks(data, rule):
        weights = {path: jnp.ones(shape) for path, shape in shapes.items()}
        masks = initial.random_masks(
            weights,
            1.0 - density,
            jax.random.key(0),
            allocation=RULES[rule],
            exact=False,
            where=".*",
        )
        sizes = np.array([leaf.size for leaf in weights.values()])
        spread = np.sqrt(data[f"{name}_density"] * (1.0 - data[f"{name}_density"]) / sizes)
        ours = np.array([float(masks[path].mean()) for path in shapes])
        assert np.all(np.abs(ours - data[f"{name}_realised_density"]) <= 6.0 * spread + 1e-7)


def normalised(x: jax.Array) -> jax.Array:
    mean = x.mean((0, 2, 3), keepdims=True)
    return (x - mean) * lax.rsqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)


def logits(params: Any, x: jax.Array) -> jax.Array:
    def convolved(x: jax.Array, layer: int, stride: int, pad: int) -> jax.Array:
        axes = ("NCHW", "OIHW", "NCHW")
        pads, strides = ((pad, pad),) * 2, (stride, stride)
        weight = params[f"w{layer}"]
        return lax.conv_general_dilated(x, weight, strides, pads, dimension_numbers=axes)

    x = jax.nn.relu(normalised(convolved(x, 0, 1, 1)))
    x = jax.nn.relu(normalised(convolved(x, 1, 2, 1)))
    x = jax.nn.relu(convolved(x, 2, 1, 1))
    x = jax.nn.relu(convolved(x, 3, 1, 0) + params["b3"][None, :, None, None])
    return x.mean((2, 3)) @ params["w4"].T + params["b4"][None]


def loss(params: Any, batch: Any, temperature: Any = 1.0) -> jax.Array:
    x, y = batch
    found = logits(params, x) / temperature
    return optax.softmax_cross_entropy_with_integer_labels(found, y).mean()


def experiments(data: Any, method: str) -> Iterator[tuple[str, float, Any, Any]]:
    """Name, density, parameters and the whole batch of each recorded run of SNIP or GraSP."""
    for match in data.matches(rf"({method}_d([^_]+))_x"):
        names = [n for n in data.arrays if re.fullmatch(rf"{match[1]}_[wb]\d+", n)]
        params = {n.removeprefix(f"{match[1]}_"): jnp.asarray(data[n]) for n in names}
        labels = jnp.asarray(data[f"{match[1]}_y"], jnp.int32)
        yield match[1], number(match[2]), params, (jnp.asarray(data[match[0]]), labels)


def ratios(scored: Any, kept: int) -> list[float]:
    """The sparsity of each layer, read off the masks of a global ranking by the allocation."""
    target = exact.sparsity(kept, sum(leaf.size for leaf in scored.values()))
    masks = jaxprune.make_masks(scored, target, allocation=allocation.global_(), where=".*")
    shapes = {path: leaf.shape for path, leaf in scored.items()}
    return [1.0 - d for d in allocation.from_masks(masks)(shapes, target).values()]


def recorded_scores(data: Any, name: str, kind: str) -> dict[str, jax.Array]:
    matches = list(data.matches(rf"{name}_{kind}(\d+)"))
    return {f"w{m[1]}": jnp.asarray(data[m[0]]) for m in matches}


def assert_close(ours: Any, theirs: dict[str, jax.Array]) -> None:
    most = max(float(jnp.abs(leaf).max()) for leaf in theirs.values())
    for path, leaf in theirs.items():
        np.testing.assert_allclose(ours[path], leaf, rtol=0.0, atol=OF_SCORES * most, err_msg=path)


def test_the_scores_and_ratios_of_snip_are_ours(recorded: Recorded):
    data = recorded("random_pruning")
    for name, density, params, batch in experiments(data, "snip"):
        theirs = recorded_scores(data, name, "absgrad")
        total = sum(float(leaf.sum()) for leaf in theirs.values())
        assert_close(
            scores.snip(loss, params, [batch], where="^w"),
            {path: leaf / total for path, leaf in theirs.items()},
        )
        kept = int(density * sum(leaf.size for leaf in theirs.values()))
        want = data[f"{name}_sparsity"]
        np.testing.assert_allclose(ratios(theirs, kept), want, rtol=0.0, atol=TOLERANCE)


def test_the_scores_and_ratios_of_grasp_are_ours(recorded: Recorded):
    data = recorded("random_pruning")
    for name, density, params, (x, y) in experiments(data, "grasp"):
        theirs = {p: -leaf for p, leaf in recorded_scores(data, name, "score").items()}
        halves = list(zip(jnp.split(x, 2), jnp.split(y, 2), strict=True))
        heat = data.settings["grasp_T"]
        ours = scores.grasp(loss, params, halves, temperature=heat, where="^w")
        assert_close(ours, theirs)
        total = abs(sum(float(jnp.sum(ours[path])) for path in theirs)) + 1e-10
        assert total == pytest.approx(float(data[f"{name}_norm_factor"]), rel=1e-2)
        # They prune what lies above the lowest of the highest `int(N * (1 - d))`, and so one less.
        size = sum(leaf.size for leaf in theirs.values())
        kept = size - int(size * (1.0 - density)) + 1
        want = data[f"{name}_sparsity"]
        np.testing.assert_allclose(ratios(theirs, kept), want, rtol=0.0, atol=TOLERANCE)
