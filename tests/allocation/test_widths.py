"""Widths before training: budgets, shared widths, and what cannot be cropped."""

import math

import pytest

from jaxprune import allocation
from jaxprune.allocation import precrop_widths

CHAIN = {
    "stem": (3, 3, 3, 64),
    "deep": (3, 3, 64, 128),
    "wide": (3, 3, 128, 512),
    "head": (4 * 512, 10),  # of 2 x 2 x 512, flattened
}


def weights(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6, 0.9])
def test_a_chain_of_like_layers_keeps_the_budget(sparsity: float) -> None:
    shapes = {f"layer{i}": (3, 3, 200, 200) for i in range(6)}
    cropped = precrop_widths(shapes, sparsity, follows=dict.fromkeys(shapes, "layer1"), fixed=())
    assert cropped.density == weights(cropped.shapes) / weights(shapes)
    assert cropped.density == pytest.approx(1.0 - sparsity, abs=0.01)


def test_a_chain_of_unlike_layers_says_what_it_keeps() -> None:
    kept = [precrop_widths(CHAIN, sparsity).density for sparsity in (0.0, 0.3, 0.6, 0.9)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 1.0
    assert kept[2] == pytest.approx(0.6, abs=0.01)  # above 0.4: what `wide` reads is not cropped
    assert precrop_widths(CHAIN, 0.6).widths["head"] == 10


def test_every_layer_reads_what_the_one_before_puts_out() -> None:
    shapes = precrop_widths(CHAIN, 0.6).shapes
    assert shapes["stem"][-2] == 3
    assert shapes["deep"][-2] == shapes["stem"][-1]
    assert shapes["wide"][-2] == shapes["deep"][-1]
    assert shapes["head"][0] == 4 * shapes["wide"][-1]


def test_widths_are_the_square_roots_of_the_densities() -> None:
    densities = allocation.precrop()(CHAIN, 0.6)
    widths = precrop_widths(CHAIN, 0.6).widths
    for path in ("stem", "deep", "wide"):
        assert widths[path] == round(math.sqrt(densities[path]) * CHAIN[path][-1])


def test_a_residual_connection_takes_the_widest() -> None:
    shapes = {"a": (8, 32), "b": (32, 64), "c": (64, 32), "out": (32, 2)}
    alone = precrop_widths(shapes, 0.6).widths
    assert alone["a"] != alone["c"]
    shared = precrop_widths(shapes, 0.6, shared=[("a", "c")])
    assert shared.widths["a"] == shared.widths["c"] == max(alone["a"], alone["c"])
    assert shared.shapes["b"] == (shared.widths["a"], alone["b"])
    assert shared.density > precrop_widths(shapes, 0.6).density


def test_widening_spends_the_budget_evenly() -> None:
    shapes = {"small": (3, 16), "large": (16, 400), "out": (400, 10)}
    cropped, widened = (precrop_widths(shapes, 0.5, widen=widen) for widen in (False, True))
    assert cropped.widths["small"] == 16
    assert widened.widths["small"] > 16
    assert widened.widths["large"] < 400


def test_a_depthwise_kernel_follows_its_input() -> None:
    shapes = {"point": (16, 64), "depth": (3, 3, 1, 64), "out": (64, 10)}
    cropped = precrop_widths(shapes, 0.7, shared=[("point", "depth")])
    assert cropped.shapes["depth"] == (3, 3, 1, cropped.widths["point"])


def test_costs_take_the_place_of_counts() -> None:
    costs = {"stem": 1e6, "deep": 1.0, "wide": 1.0, "head": 1.0}
    widths = precrop_widths(CHAIN, 0.5, costs=costs).widths
    assert widths["stem"] == round(math.sqrt(0.5) * 64)
    assert widths["wide"] == 512


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(ValueError) as error:
        precrop_widths({"a": (4, 4), "b": (4, 4)}, 0.5, shared=[("a", "c")])
    assert str(error.value) == (
        "follows, shared or fixed names 'c', which shapes does not have; it has 'a', 'b'."
    )


def test_an_input_of_another_layer_is_named() -> None:
    with pytest.raises(ValueError) as error:
        precrop_widths({"a": (4, 6), "b": (4, 4)}, 0.5)
    assert str(error.value) == (
        "'b' of shape (4, 4) reads 4 inputs, which is not a multiple of the width 6 of 'a'. Say in "
        "follows= which layer it reads."
    )
