"""What holds for every pattern."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxprune import patterns
from jaxprune.types import Pattern
from tests.laws.measure import collectives, compilations
from tests.members import PATTERNS, Row

SHAPE = (16, 8)
DENSITIES = (1.0, 0.9, 0.75, 0.5, 0.3, 0.1, 0.01)
every = pytest.mark.parametrize("row", PATTERNS, ids=repr)
shapes = pytest.mark.parametrize("shape", [(16, 8), (3, 2, 8, 16)], ids=str)
sharded = pytest.mark.parametrize("spec", [("data", "model"), (("data", "model"),)], ids=str)


def draw(key: jax.Array, shape: tuple[int, ...] = SHAPE, dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.uniform(key, shape, dtype)


def densest_that_holds(pattern: Pattern) -> float:
    return 0.5 if pattern.final_sparsity is None else 1.0 - pattern.final_sparsity


@every
@shapes
def test_it_fits_the_shapes_of_the_laws(row: Row, shape: tuple[int, ...]):
    assert isinstance(row.make(), Pattern)
    row.make().check("kernel", shape)


@every
@shapes
def test_everything_is_kept_at_density_1(row: Row, shape: tuple[int, ...], key: jax.Array):
    pattern = row.make()
    mask = pattern.mask(draw(key, shape), pattern.units(shape, 1.0))
    assert mask.shape == shape
    assert mask.dtype == jnp.bool_
    assert bool(mask.all())


@every
@shapes
def test_as_much_is_kept_as_the_density_says(row: Row, shape: tuple[int, ...], key: jax.Array):
    pattern = row.make()
    density = densest_that_holds(pattern)
    mask = pattern.mask(draw(key, shape), pattern.units(shape, density))
    assert float(mask.mean(dtype=jnp.float32)) == density


@every
@shapes
def test_units_fall_with_the_density_and_never_to_nothing(row: Row, shape: tuple[int, ...]):
    pattern = row.make()
    units = [pattern.units(shape, density) for density in DENSITIES]
    assert all(type(count) is int for count in units)
    assert units == sorted(units, reverse=True)
    assert len(set(units)) > 1
    assert units[-1] >= 1


@every
@shapes
def test_masks_nest_as_the_density_falls(row: Row, shape: tuple[int, ...], key: jax.Array):
    pattern, scores = row.make(), draw(key, shape)
    masks = [pattern.mask(scores, pattern.units(shape, density)) for density in DENSITIES]
    for wide, narrow in itertools.pairwise(masks):
        assert not bool((narrow & ~wide).any())


@every
@shapes
def test_the_mask_obeys_the_pattern_and_one_flip_breaks_it(
    row: Row, shape: tuple[int, ...], key: jax.Array
):
    pattern = row.make()
    mask = pattern.mask(draw(key, shape), pattern.units(shape, densest_that_holds(pattern)))
    holds = pattern.holds(mask)
    assert holds.shape == ()
    assert holds.dtype == jnp.bool_
    assert bool(holds)
    pruned = tuple(index[0] for index in np.nonzero(~np.asarray(mask)))
    free = pattern.units(shape, 0.5) == mask.size // 2  # single weights: nothing can break
    assert bool(pattern.holds(mask.at[pruned].set(True))) == free


@every
@shapes
def test_what_is_kept_scores_higher(row: Row, shape: tuple[int, ...], key: jax.Array):
    pattern, scores = row.make(), draw(key, shape)
    mask = pattern.mask(scores, pattern.units(shape, 0.5))
    assert float(scores[mask].mean()) > float(scores[~mask].mean())
    raised = jnp.where(mask, scores + 1.0, scores)
    np.testing.assert_array_equal(pattern.mask(raised, pattern.units(shape, 0.5)), mask)


@every
@shapes
def test_ties_go_to_the_lower_index(row: Row, shape: tuple[int, ...]):
    pattern = row.make()
    kept = pattern.units(shape, 0.5)
    falling = -jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
    np.testing.assert_array_equal(pattern.mask(jnp.zeros(shape), kept), pattern.mask(falling, kept))


@every
def test_a_mask_as_scores_selects_itself(row: Row, key: jax.Array):
    pattern = row.make()
    kept = pattern.units(SHAPE, 0.5)
    mask = pattern.mask(draw(key), kept)
    np.testing.assert_array_equal(pattern.mask(mask.astype(jnp.float32), kept), mask)


@every
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32], ids=str)
def test_the_type_of_the_scores_does_not_matter(row: Row, key: jax.Array, dtype: Any):
    pattern = row.make()
    scores = jax.random.randint(key, SHAPE, -9, 9)
    kept = pattern.units(SHAPE, 0.5)
    np.testing.assert_array_equal(
        pattern.mask(scores.astype(dtype), kept), pattern.mask(scores.astype(jnp.float32), kept)
    )


@every
def test_infinite_scores_win_and_lose(row: Row, key: jax.Array):
    pattern = row.make()
    mask = pattern.mask(draw(key), pattern.units(SHAPE, 0.5))
    scores = jnp.where(mask, jnp.inf, -jnp.inf)
    np.testing.assert_array_equal(pattern.mask(scores, pattern.units(SHAPE, 0.5)), mask)


@every
def test_the_count_may_be_traced(row: Row, key: jax.Array):
    pattern, scores = row.make(), draw(key)
    traced = jax.jit(pattern.mask)
    for density in DENSITIES:
        kept = pattern.units(SHAPE, density)
        np.testing.assert_array_equal(traced(scores, jnp.int32(kept)), pattern.mask(scores, kept))


@every
def test_it_can_be_mapped_over_layers_and_counts(row: Row, key: jax.Array):
    pattern, stack = row.make(), draw(key, (5, *SHAPE))
    kept = jnp.array([pattern.units(SHAPE, density) for density in DENSITIES[:5]])
    got = jax.vmap(pattern.mask)(stack, kept)
    want = [pattern.mask(scores, int(k)) for scores, k in zip(stack, kept, strict=True)]
    np.testing.assert_array_equal(got, jnp.stack(want))


@every
def test_the_second_call_compiles_nothing(row: Row, key: jax.Array):
    pattern = row.make()
    for fn in (pattern.mask, jax.jit(pattern.mask)):
        fn(draw(key), jnp.int32(3))
        scores, kept = draw(jax.random.fold_in(key, 1)), jnp.int32(2)
        with compilations() as found:
            fn(scores, kept)
        assert not found


@every
@sharded
def test_a_sharded_mask_is_the_same_and_needs_scalars_only(
    row: Row, spec: tuple[Any, ...], key: jax.Array, mesh: Mesh
):
    pattern, shape = row.make(), (64, 32)
    scores = jax.random.randint(key, shape, 0, 50).astype(jnp.float32)
    kept = pattern.units(shape, 0.5)
    want = pattern.mask(scores, kept)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    scores = jax.device_put(scores, sharding)
    with jax.set_mesh(mesh):
        compiled = jax.jit(pattern.mask).lower(scores, jnp.int32(kept)).compile()
        got = compiled(scores, jnp.int32(kept))
        holds = bool(jax.jit(pattern.holds)(got))
    np.testing.assert_array_equal(got, want)
    assert got.sharding.is_equivalent_to(sharding, len(shape))
    assert holds
    found = collectives(compiled)
    most = shape[-1] if "sums" in row.needs else 1
    assert set(found) <= {"all-reduce"}
    assert all(size <= most for size in found.values())


@every
def test_it_is_a_value(row: Row):
    pattern = row.make()
    assert hash(pattern) == hash(row.make())
    assert eval(repr(pattern), dict(vars(patterns))) == pattern == row.make()
