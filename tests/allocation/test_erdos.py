"""Erdős–Rényi, with and without the kernel."""

import math

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxprune import allocation

SHAPES = {"conv": (3, 3, 4, 16), "wide": (64, 256), "out": (256, 4)}


def test_densities_are_in_the_ratio_of_the_widths_where_none_is_dense():
    densities = allocation.erdos_renyi(SHAPES, 0.99)
    raw = {"conv": 20 / 64, "wide": 320 / (64 * 256), "out": 260 / 1024}
    scale = densities["wide"] / raw["wide"]
    assert densities == pytest.approx({path: scale * value for path, value in raw.items()})
    assert max(densities.values()) < 1.0


def test_the_kernel_counts_the_window_too():
    densities = allocation.erdos_renyi_kernel(SHAPES, 0.99)
    want = (3 + 3 + 4 + 16) / (3 * 3 * 4 * 16) / (320 / (64 * 256))
    assert densities["conv"] / densities["wide"] == pytest.approx(want)


def test_what_a_dense_layer_cannot_take_is_shared_by_the_others():
    densities = allocation.erdos_renyi(SHAPES, 0.8)
    assert densities["conv"] == densities["out"] == 1.0
    assert densities["wide"] < 0.2


def test_all_layers_that_attain_the_maximum_become_dense_together():
    shapes = {"a": (4, 4), "b": (4, 4), "c": (256, 256)}
    densities = allocation.erdos_renyi(shapes, 0.9)
    assert densities["a"] == densities["b"] == 1.0


@hypothesis.given(
    st.lists(st.lists(st.integers(1, 300), min_size=2, max_size=4), min_size=1, max_size=6),
    st.floats(0.0, 0.999),
)
def test_the_total_is_exact_for_any_shapes(shapes: list[list[int]], sparsity: float):
    named = {str(i): tuple(shape) for i, shape in enumerate(shapes)}
    sizes = [math.prod(shape) for shape in named.values()]
    for member in (allocation.erdos_renyi, allocation.erdos_renyi_kernel):
        densities = member(named, sparsity)
        assert all(0.0 < d <= 1.0 + 1e-12 for d in densities.values())
        total = sum(d * n for d, n in zip(densities.values(), sizes, strict=True))
        assert total == pytest.approx((1.0 - sparsity) * sum(sizes), rel=1e-9)


def test_they_print_as_their_names():
    assert repr(allocation.erdos_renyi) == "erdos_renyi"
    assert repr(allocation.erdos_renyi_kernel) == "erdos_renyi_kernel"


def test_a_vector_has_no_width():
    with pytest.raises(ValueError) as error:
        allocation.erdos_renyi({"norm/scale": (8,)}, 0.5)
    assert str(error.value) == (
        "erdos_renyi does not fit 'norm/scale' of shape (8,): it needs an input and an output "
        "axis, the last two. Use erdos_renyi_kernel, or exclude this parameter with where=."
    )
    assert allocation.erdos_renyi_kernel({"norm/scale": (8,)}, 0.5) == {"norm/scale": 0.5}
