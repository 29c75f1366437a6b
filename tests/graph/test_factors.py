"""The digits of a dimension against numpy, which moves the numbers themselves."""

import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxprune.graph.factors import Factor, cut, merged, regroup, whole
from jaxprune.graph.program import read
from tests.graph.oracle import positions

STEPS = ("transpose", "reshape", "slice", "reverse", "new axis", "drop", "pick")


def indices(piece, shape):
    """The parameter's flat index at each place of a piece."""
    total = np.zeros(piece.sizes, int)
    strides = [math.prod(shape[a + 1 :]) for a in range(len(shape))]
    for d, dim in enumerate(piece.dims):
        for axis, at in positions(dim).items():
            along = [1] * len(piece.dims)
            along[d] = -1
            total = total + (at * strides[axis]).reshape(along) if axis is not None else total
    return total + sum(f.start * strides[f.axis] for f in piece.fixed)


@st.composite
def journeys(draw):
    """A shape, and what is done to an array of it."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3))
    return shape, draw(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 99)), max_size=4))


def moved(x, step, draw):
    """One step of a journey, the same for numpy and jax."""
    axis = draw % x.ndim if x.ndim else 0
    if step == "transpose":
        return x.transpose(np.roll(range(x.ndim), draw))
    if step == "reshape":
        first = draw % x.size + 1
        return x.reshape((first, -1)) if x.size % first == 0 else x.reshape(-1)
    if step == "slice" and x.ndim:
        return x[(slice(None),) * axis + (slice(draw % 2, None, 1 + draw % 3 // 2),)]
    if step == "reverse" and x.ndim:
        return x[(slice(None),) * axis + (slice(None, None, -1),)]
    if step == "new axis":
        return x[None]
    if step == "pick" and x.ndim:
        return x[(slice(None),) * axis + (draw % x.shape[axis],)]
    return x


@hypothesis.settings(max_examples=60)
@hypothesis.given(journeys())
def test_a_weight_is_where_the_graph_says(journey):
    shape, steps = journey

    def go(x):
        for step, draw in steps:
            x = moved(x, step, draw)
        return x

    def fn(p, x):
        return go(p["w"]) * x

    want = go(np.arange(math.prod(shape)).reshape(shape))
    if want.size == 0:
        return
    w, x = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (tuple(shape), want.shape))
    program = read(fn, {"w": w}, x)
    followed = [use.piece for use in program.uses]
    if not followed:  # it gives up only where digits mix
        (entry,) = program.skipped
        assert entry.reason.startswith(("it mixes", "it cuts", "it reverses"))
        return
    np.testing.assert_array_equal(indices(followed[0], shape), want)


def merged_of(dims):
    (one,) = regroup(dims, [24]) or [()]
    return one


def test_a_merged_dimension_splits_again():
    dims = whole("w", (4, 6)).dims
    one = merged_of(dims)
    assert regroup([one], [4, 6]) == list(dims)
    assert regroup([one], [2, 12])[1] == (Factor(0, 1, 2), Factor(1, 1, 6))
    assert regroup([one], [3, 8]) is None


@pytest.mark.parametrize(
    ("start", "size", "want"),
    [
        (6, 12, (Factor(0, 1, 2, 1), Factor(1, 1, 6))),
        (8, 2, (Factor(0, 1, 1, 1), Factor(1, 1, 2, 2))),
        (4, 4, None),
        (None, 6, None),
        (None, 1, (Factor(0, 1, 1, None), Factor(1, 1, 1, None))),
    ],
)
def test_a_range_of_a_merged_dimension(start, size, want):
    assert cut((Factor(0, 1, 4), Factor(1, 1, 6)), start, size) == want


def test_neighbouring_digits_of_one_axis_are_one():
    assert merged((Factor(0, 3, 2, 6), Factor(0, 1, 3, 1))) == (Factor(0, 1, 6, 7),)
    assert len(merged((Factor(0, 1, 2), Factor(0, 2, 3)))) == 2
