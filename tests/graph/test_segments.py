"""A model cut into its blocks: where, what passes between them, and that it computes the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune
from jaxprune._core import paths
from tests.graph import stacks
from tests.graph.cases import inputs, weights


def traced(stack: stacks.Stack) -> Any:
    return jaxprune.trace(stack.fn, stack.params, *stack.inputs)


def check_run(stack: stacks.Stack, segments: Any, atol: float = 1e-5) -> None:
    """The segments in a row give what the model gives."""
    want = jax.tree.leaves(jax.jit(stack.fn)(*arrays(stack)))
    got = segments(paths.flatten(stack.params), *stack.inputs)
    for one, other in zip(got, want, strict=True):
        assert np.abs(other).max() > 0.01
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=atol)


def arrays(stack: stacks.Stack) -> Any:
    """Parameters and inputs that jit takes: functions among the leaves are no arguments."""

    def taken(leaf: Any) -> Any:
        return jax.tree_util.Partial(leaf) if callable(leaf) else leaf

    return jax.tree.map(taken, stack.params), *stack.inputs


@pytest.mark.parametrize("name", stacks.MAKERS)
def test_each_block_is_a_segment_and_all_share_one_program(name: str) -> None:
    stack = stacks.MAKERS[name]()
    segments = traced(stack).segments()
    blocks = [segment for segment in segments if segment.repeats]
    assert len(blocks) == stacks.DEPTH
    assert len({id(segment.body) for segment in blocks}) == 1
    for i, segment in enumerate(blocks):
        assert stack.of_block(i) <= set(segment.weights.values())
        others = set().union(*(stack.of_block(j) for j in range(stacks.DEPTH) if j != i))
        assert not others & set(segment.weights.values())
    check_run(stack, segments, 1e-2 if "cast" in name else 1e-5)


def test_a_scan_gives_as_many_segments_as_a_loop() -> None:
    both = [traced(stacks.llama(scanned)).segments() for scanned in (False, True)]
    assert [len(segments) for segments in both] == [stacks.DEPTH + 2] * 2
    assert [repr(segments) for segments in both] == ["Segments(5, 3 different)"] * 2
    assert repr(both[1].segments[0]) == "Segment(embed)"


def test_matrices_that_are_not_multiplied_with_data_are_no_products() -> None:
    blocks = [s for s in traced(stacks.masked()).segments() if s.repeats]
    chosen = {blocks[1].weights[name] for name in blocks[1].products}
    assert chosen == {("blocks/up", 1), ("blocks/down", 1)}


def test_what_passes_between_blocks_is_the_stream_and_what_they_share() -> None:
    segments = traced(stacks.shared_mask()).segments()
    first, second, third = (segment for segment in segments if segment.repeats)
    shapes = segments.steps.shapes
    assert [shapes[v].shape for v in first.writes] == [(5, stacks.WIDTH)]
    assert second.writes != first.writes
    for before, after in ((first, second), (second, third)):
        assert set(before.writes) <= set(after.reads)
        (mask,) = set(after.reads) - set(before.writes)
        assert shapes[mask].shape == (5, 5)
        assert mask in segments.fixed
        assert not segments.fixed & set(before.writes)
        assert segments.last_read()[mask] == 3
        assert segments.last_read()[before.writes[0]] < 4


def test_the_rows_of_a_stack_come_one_by_one() -> None:
    stack = stacks.scanned()
    blocks = [s for s in traced(stack).segments() if s.repeats]
    leaves = paths.flatten(stack.params)
    some = blocks[2].params(leaves)
    shapes = sorted(leaf.shape for leaf in some.values())
    assert shapes == [(stacks.WIDTH, stacks.HIDDEN), (stacks.HIDDEN, stacks.WIDTH)]
    (up,) = [n for n, place in blocks[2].weights.items() if place == ("blocks/up", 2)]
    np.testing.assert_array_equal(some[up], leaves["blocks/up"][2])


def test_a_reversed_scan_and_its_outputs() -> None:
    params = weights(blocks=(3, 4, 4))

    def fn(p: Any, x: jax.Array) -> Any:
        def turn(x: jax.Array, w: jax.Array) -> Any:
            return x + jnp.tanh(x @ w), (x.sum(), 2.0)

        return lax.scan(turn, x, p["blocks"], reverse=True)

    stack = stacks.Stack(fn, params, (inputs(5, 4),), stacks.listed)
    segments = traced(stack).segments()
    assert [[*s.weights.values()] for s in segments if s.weights] == [
        [("blocks", 2)], [("blocks", 1)], [("blocks", 0)]
    ]  # fmt: skip
    check_run(stack, segments)


def test_a_model_without_repetition_is_one_segment() -> None:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sin(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]

    stack = stacks.Stack(fn, weights(a=(4, 6), b=(6, 5), c=(5, 2)), (inputs(3, 4),), stacks.listed)
    segments = traced(stack).segments()
    assert len(segments) == 1
    assert not segments.segments[0].repeats
    assert segments.cuts == ()
    check_run(stack, segments)


def test_repetition_without_a_product_makes_no_blocks() -> None:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sin(jnp.sin(jnp.sin(x * p["scale"]))) @ p["w"]

    params = weights(scale=(), w=(4, 2))
    assert len(jaxprune.trace(fn, params, inputs(3, 4)).segments()) == 1


def test_parameters_and_what_is_made_of_them_can_be_returned() -> None:
    plain = stacks.unrolled()

    def fn(p: Any, x: jax.Array) -> Any:
        decay = sum((w["up"] ** 2).sum() for w in p["blocks"])
        return plain.fn(p, x), decay, p["last"], x, 1.5

    stack = stacks.Stack(fn, plain.params, plain.inputs, stacks.listed)
    segments = traced(stack).segments()
    assert sum(segment.repeats for segment in segments) == stacks.DEPTH
    check_run(stack, segments)


def test_callbacks_of_different_functions_are_told_apart() -> None:
    def of(factor: float) -> Any:
        return lambda x: np.float32(factor) * x

    first, second = of(2.0), of(3.0)

    def fn(p: Any, x: jax.Array) -> jax.Array:
        for w, function in zip(p, (first, second), strict=True):
            x = jax.pure_callback(function, x, x @ w)
        return x

    stack = stacks.Stack(
        fn, list(weights(a=(4, 4), b=(4, 4)).values()), (inputs(3, 4),), stacks.listed
    )
    segments = traced(stack).segments()
    check_run(stack, segments)


def test_the_caller_may_cut_elsewhere() -> None:
    stack = stacks.unrolled()
    graph = traced(stack)
    found = graph.segments()
    assert graph.segments() is found  # what is compiled for it is found again
    assert graph.segments(found.cuts).cuts == found.cuts
    whole = graph.segments(())
    assert len(whole) == 1
    two = graph.segments([found.cuts[1], found.cuts[1]])
    assert len(two) == 2
    check_run(stack, two)


@pytest.mark.parametrize("cuts", [(0,), (-1, 2), (99,)])
def test_a_cut_outside_the_model_is_refused(cuts: tuple[int, ...]) -> None:
    graph = traced(stacks.unrolled(lambda w, x: x + x @ w["up"] @ w["down"]))
    with pytest.raises(ValueError) as caught:
        graph.segments(cuts)
    assert str(caught.value) == (
        f"cuts={cuts} must be between 1 and 10, the places between the model's 11 steps. Take some "
        "of graph.segments().cuts."
    )


def peak(depth: int) -> int:
    """Bytes that a block needs while it runs: arguments, results and scratch."""
    graph = traced(stacks.unrolled(params=stacks.layers(depth)))
    segments = [segment for segment in graph.segments() if segment.repeats]
    assert len(segments) == depth
    body = segments[0].body
    memory = body.jitted.lower(body.params, *body.inputs).compile().memory_analysis()
    assert memory.argument_size_in_bytes >= 2 * 4 * stacks.WIDTH * stacks.HIDDEN
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def test_a_block_needs_the_same_memory_in_a_deeper_model() -> None:
    assert peak(2) == peak(6)
