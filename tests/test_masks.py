"""The hinge: scores, allocation and pattern become masks."""

import functools
import itertools
import re
from fractions import Fraction
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import NM, Block, Channel, Unstructured, allocation, scores
from jaxprune._core.packing import pack
from jaxprune.masks import MaskRule, describe


def kept(masks: Any) -> Any:
    return jax.tree.map(lambda mask: int(mask.sum()), masks)


def weights(*names: str) -> dict[str, jax.Array]:
    """Weights of one shape, since every new one has to be compiled."""
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=(8, 8)), jnp.float32) for name in names}


def stack() -> jax.Array:
    """The weights of three layers of very different size."""
    return jnp.stack([scale * weights("a")["a"] for scale in (1.0, 10.0, 100.0)])


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def test_the_lowest_scores_are_pruned_and_other_leaves_have_no_mask():
    tree = {"kernel": jnp.array([[4.0, 1.0], [2.0, 3.0]]), "bias": jnp.zeros(2)}
    masks = jaxprune.make_masks(tree, 0.5)
    assert masks["kernel"].tolist() == [[True, False], [False, True]]
    assert masks["kernel"].dtype == jnp.bool_
    assert masks["bias"] == optax.MaskedNode()


def test_the_container_is_kept():
    tree = [Layer(jnp.ones((2, 2)), jnp.ones(2)), (Layer(jnp.ones((4, 2)), jnp.ones(2)), None)]
    masks = jaxprune.make_masks(tree, 0.5)
    assert kept(masks) == [
        Layer(2, optax.MaskedNode()),
        (Layer(4, optax.MaskedNode()), None),
    ]


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.999, np.float32(0.25)])
def test_uniform_counts_are_rounded_and_never_nothing(sparsity: float):
    tree = weights("a")
    found = kept(jaxprune.make_masks(tree, sparsity))
    assert found == {"a": max(1, round((1 - float(sparsity)) * 64))}


def test_scores_may_be_random_or_gradients(key: jax.Array):
    tree = weights("a")
    grads = {"a": jnp.arange(64.0).reshape(8, 8)}
    by_gradient = jaxprune.make_masks(scores.taylor({"a": jnp.ones((8, 8))}, grads), 0.5)
    assert by_gradient["a"].ravel().tolist() == [False] * 32 + [True] * 32
    assert kept(jaxprune.make_masks(scores.random(tree, key), 0.25)) == {"a": 48}


def test_prune_hands_the_score_the_prunable_parameters_and_no_gradients():
    seen = []

    def score(params: Any, grads: Any) -> Any:
        seen.append((params, grads))
        return jax.tree.map(lambda w: -w, params)

    tree = {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.ones(2)}
    pruned, masks = jaxprune.prune(tree, 0.5, score=score)
    assert seen[0][0]["bias"] == optax.MaskedNode()
    assert seen[0][1] is None
    assert pruned["kernel"].tolist() == [[1.0, 0.0]]
    assert pruned["bias"].tolist() == [1.0, 1.0]
    assert masks["kernel"].tolist() == [[True, False]]


def test_where_is_a_predicate_a_regex_or_a_tree():
    tree = weights("a", "c")
    want = {"a": 32, "c": optax.MaskedNode()}
    choices = (lambda path, leaf: path == "a", "^a$", {"a": True, "c": False})
    for where in choices:
        assert kept(jaxprune.make_masks(tree, 0.5, where=where)) == want
        assert kept(jaxprune.prune(tree, 0.5, where=where)[1]) == want


def test_layers_have_a_budget_and_a_ranking_of_their_own():
    single = [jaxprune.make_masks({"k": layer}, 0.75)["k"] for layer in stack()]
    stacked = jaxprune.make_masks({"k": stack()}, 0.75, layers={"k": 0})["k"]
    np.testing.assert_array_equal(stacked, jnp.stack(single))
    together = jaxprune.make_masks({"k": stack()}, 0.75)["k"]
    assert together.sum((1, 2)).tolist() != stacked.sum((1, 2)).tolist()


def test_layers_have_patterns_and_allocations_of_their_own():
    nm = jaxprune.make_masks({"k": stack()}, 0.5, layers={"k": 0}, pattern=NM(2, 4))
    assert bool(jax.vmap(NM(2, 4).holds)(nm["k"]).all())
    moved = {"k": jnp.moveaxis(stack(), 0, -1)}
    last = jaxprune.make_masks(moved, 0.5, layers={"k": -1}, pattern=NM(2, 4))
    np.testing.assert_array_equal(last["k"], jnp.moveaxis(nm["k"], 0, -1))
    erk = MaskRule(allocation=allocation.erdos_renyi_kernel, layers={"k": 0})
    counts = erk.counts({"k": (3, 8, 8), "wide": (64, 64)}, 0.9)
    alone = {f"k{i}": (8, 8) for i in range(3)} | {"wide": (64, 64)}
    each = MaskRule(allocation=allocation.erdos_renyi_kernel).counts(alone, 0.9)
    assert counts["k"].tolist() == [each[f"k{i}"] for i in range(3)]
    assert counts["wide"] == each["wide"]


def test_a_pattern_of_fixed_sparsity_is_the_same_in_all_layers_but_for_exceptions():
    params = {"narrow": stack()[0], "wide": jnp.arange(1.0, 4097.0).reshape(64, 64)}

    def live(allocation):
        masks = jaxprune.make_masks(params, 0.5, pattern=NM(2, 4), allocation=allocation)
        return [float(masks[name].mean()) for name in params]

    assert live(allocation.erdos_renyi_kernel) == [0.5, 0.5]
    assert live(allocation.per_layer({"narrow": 0.0})) == [1.0, 0.5]


def test_a_floor_of_a_global_ranking_holds_for_every_layer():
    floor = allocation.global_(min_kept=3)
    masks = jaxprune.make_masks({"k": abs(stack())}, 0.75, layers={"k": 0}, allocation=floor)["k"]
    assert masks.sum((1, 2)).tolist() == [3, 3, 42]


def test_patterns_go_by_name_and_the_first_that_is_found_decides():
    tree = weights("first", "second", "third")
    pattern = {"first": NM(1, 4), "third|first": Block((4, 4)), ".*": Unstructured()}
    masks = jaxprune.make_masks(tree, 0.75, pattern=pattern)
    assert kept(masks) == {"first": 16, "second": 16, "third": 16}
    assert bool(NM(1, 4).holds(masks["first"]))
    assert bool(Block((4, 4)).holds(masks["third"]))
    assert not bool(Block((4, 4)).holds(masks["first"]))


def test_a_pattern_of_fixed_sparsity_keeps_it_among_others():
    tree = weights("first", "second")
    masks = jaxprune.make_masks(tree, 0.9, pattern={"first": NM(2, 4), "": Unstructured()})
    assert kept(masks) == {"first": 32, "second": 6}


def test_channels_are_pruned_whole():
    masks = jaxprune.make_masks(weights("a"), 0.5, pattern=Channel(-1))
    assert sorted(masks["a"].sum(0).tolist()) == [0] * 4 + [8] * 4


SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5)


@hypothesis.given(shapes=SIZES, percent=st.integers(0, 99))
def test_the_total_of_erk_is_exact(shapes: list[tuple[int, int]], percent: int):
    named = {f"{i}": shape for i, shape in enumerate(shapes)}
    total = sum(a * b for a, b in shapes)
    for erk in (allocation.erdos_renyi_kernel, allocation.erdos_renyi):
        counts = MaskRule(allocation=erk).counts(named, percent / 100)
        assert sum(counts.values()) == round(total * (1 - Fraction(percent, 100)))
        assert all(0 <= counts[p] <= a * b for p, (a, b) in named.items())


def test_counts_are_exact_where_float32_is_not():
    shape = {"k": (10**4, 10**4)}
    for sparsity in (0.9, 0.37, 0.123456789):
        exact = round(10**8 * (1 - Fraction(str(sparsity))))
        assert MaskRule().counts(shape, sparsity) == {"k": exact}
    large = {"a": (40_000, 50_000), "b": (40_000, 50_000)}
    words = MaskRule(allocation=allocation.global_()).counts(large, 0.25)[""]
    assert int(words.high) * 2**16 + int(words.low) == 3 * 10**9


def test_a_global_ranking_takes_the_best_of_all_after_the_floors():
    tree = weights("a", "c")
    tree["c"] = tree["c"] + 100.0
    free = jaxprune.make_masks(scores.magnitude(tree), 0.5, allocation=allocation.global_())
    assert kept(free) == {"a": 0, "c": 64}
    floors = allocation.global_(min_density=0.25, min_kept=6)
    guarded = jaxprune.make_masks(scores.magnitude(tree), 0.5, allocation=floors)
    assert kept(guarded) == {"a": 16, "c": 48}
    best = jaxprune.top_k_mask(jnp.abs(tree["a"]), 16)
    np.testing.assert_array_equal(guarded["a"], best)


def test_ties_of_a_global_ranking_go_to_the_earlier_leaf_of_the_tree():
    trees: tuple[Any, ...] = (
        {"a": {"k": jnp.zeros((8, 8))}, "a-b": {"k": jnp.zeros((8, 8))}},
        Layer(jnp.zeros((8, 8)), jnp.zeros((8, 8))),
    )
    for tree in trees:
        masks = jaxprune.make_masks(tree, 0.5, allocation=allocation.global_(), where=".")
        first, second = jax.tree.leaves(masks)
        assert (int(first.sum()), int(second.sum())) == (64, 0)


def test_per_layer_sparsities():
    tree = weights("stem", "body", "head")
    given = allocation.per_layer({"stem": 0.0, "head": 0.25})
    assert kept(jaxprune.make_masks(tree, 0.75, allocation=given)) == {
        "stem": 64,
        "body": 16,
        "head": 48,
    }


def test_masks_can_be_made_under_jit():
    make = functools.partial(
        jaxprune.make_masks, sparsity=0.8, allocation=allocation.global_(min_kept=2)
    )
    found, expected = jax.jit(make)(weights("a", "c")), make(weights("a", "c"))
    assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(expected)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32], ids=str)
def test_zeros_are_chosen_not_multiplied(dtype: Any):
    nasty = jnp.array([[jnp.nan, jnp.inf, -jnp.inf, -3.0, 5.0]], dtype)
    mask = jnp.array([[False, False, False, False, True]])
    pruned = jaxprune.apply_masks({"k": nasty, "b": nasty}, {"k": mask})
    assert pruned["k"].tolist() == [[0.0, 0.0, 0.0, 0.0, 5.0]]
    assert not jnp.signbit(pruned["k"]).any()
    assert pruned["k"].dtype == dtype
    assert jnp.array_equal(pruned["b"], nasty, equal_nan=True)


def test_masks_are_matched_by_path_whatever_the_container():
    params = Layer(jnp.ones((2, 2)), jnp.ones(2))
    mask = jnp.array([[True, False], [False, True]])
    for masks in ({"kernel": mask}, {"kernel": pack(mask)}, Layer(mask, optax.MaskedNode())):
        pruned = jaxprune.apply_masks(params, masks)
        assert isinstance(pruned, Layer)
        assert pruned.kernel.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_pruning_again_changes_nothing():
    tree = weights("a")
    once, masks = jaxprune.prune(tree, 0.7)
    twice, again = jaxprune.prune(once, 0.7)
    np.testing.assert_array_equal(masks["a"], again["a"])
    np.testing.assert_array_equal(once["a"], twice["a"])


def test_masks_nest_as_the_sparsity_rises():
    tree = weights("a")
    masks = [jaxprune.make_masks(tree, s)["a"] for s in (0.1, 0.5, 0.7, 0.95)]
    assert not any(bool((b & ~a).any()) for a, b in itertools.pairwise(masks))


def test_a_rule_is_described_alike_in_every_process():
    score = functools.partial(scores.random, key=jax.random.key(0))
    assert re.search("0x", repr(score))
    assert not re.search("0x", describe(score))
    assert describe(scores.magnitude) == "jaxprune.scores.weights.magnitude"
    texts = {
        MaskRule(pattern, rule, layers).describe()
        for pattern in (Unstructured(), NM(2, 4), NM(1, 4), {"a": NM(1, 4)})
        for rule in (allocation.uniform, allocation.global_(), allocation.global_(min_kept=1))
        for layers in ({}, {"a": 0})
    }
    assert len(texts) == 24
