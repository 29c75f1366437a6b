"""Gradual pruning inside ``jax.shard_map``: weights are ranked over all shards."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxprune
from jaxprune import NM, Block, Channel, allocation, schedules
from jaxprune.transforms import Health, moments

RAMP = schedules.linear(0.0, 0.75, begin=0, end=2)
SHAPES = {"a/kernel": (16, 8), "c/kernel": (8, 16)}
SPECS = {
    "a": {"kernel": PartitionSpec("data", "model")},
    "c": {"kernel": PartitionSpec("model", "data")},
}
EVERYTHING = ("data", "model")


def parameters() -> dict[str, Any]:
    draws = np.random.default_rng(0)
    return {
        path[0]: {"kernel": jnp.asarray(draws.normal(size=shape), jnp.float32)}
        for path, shape in SHAPES.items()
    }


def train(mesh: Mesh, tx: Any, *, check_vma: bool) -> tuple[Any, Any, Health]:
    """Three steps inside one ``shard_map``."""

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = tx.update(params, state, params)
        return (optax.apply_updates(params, updates), state), None

    def steps(params: Any) -> Any:
        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=3)
        return params, jaxprune.get_masks(state), state.health

    out = (SPECS, SPECS, PartitionSpec())
    body = jax.shard_map(steps, mesh=mesh, in_specs=(SPECS,), out_specs=out, check_vma=check_vma)
    return jax.jit(body)(placed(mesh, parameters()))


def placed(mesh: Mesh, tree: Any) -> Any:
    return jax.device_put(tree, jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS))


def kept(masks: Any) -> tuple[int, int]:
    return int(masks["a"]["kernel"].sum()), int(masks["c"]["kernel"].sum())


@pytest.mark.parametrize("check_vma", [True, False])
def test_exactly_k_are_kept_in_all(mesh: Mesh, check_vma: bool):
    names = None if check_vma else EVERYTHING
    tx = jaxprune.gradual(optax.sgd(0.25), RAMP, axis_names=names)
    params, masks, health = train(mesh, tx, check_vma=check_vma)
    assert kept(masks) == (32, 32)
    # No two weights are equal, so that the mask is that of one device.
    alone = jaxprune.prune(parameters(), 0.75)[1]
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask["kernel"], alone[name]["kernel"])
        np.testing.assert_array_equal(params[name]["kernel"] != 0, mask["kernel"])
    assert health.came_back.tolist() == [0, 0]


def test_allocations_that_look_at_shapes_are_given_them():
    mesh = jax.make_mesh((4, 2), EVERYTHING)
    erk = allocation.erdos_renyi_kernel
    tx = jaxprune.gradual(optax.sgd(0.25), RAMP, allocation=erk, shapes=SHAPES)
    _, masks, _ = train(mesh, tx, check_vma=True)
    assert kept(masks) == kept(jaxprune.prune(parameters(), 0.75, allocation=erk)[1])


def test_a_global_ranking_goes_over_all_shards_of_all_leaves():
    mesh = jax.make_mesh((4, 2), EVERYTHING)
    rank = allocation.global_(min_kept=3)
    tx = jaxprune.gradual(optax.sgd(0.25), RAMP, allocation=rank, axis_names=EVERYTHING)
    _, masks, _ = train(mesh, tx, check_vma=False)
    assert kept(masks) == kept(jaxprune.prune(parameters(), 0.75, allocation=rank)[1])


@pytest.mark.parametrize("pattern", [NM(1, 4, axis=0), Block((2, 4))], ids=repr)
def test_patterns_hold_within_shards(pattern: Any):
    mesh = jax.make_mesh((2, 2), EVERYTHING)
    tx = jaxprune.gradual(optax.sgd(0.25), RAMP, pattern=pattern, axis_names=EVERYTHING)
    _, masks, _ = train(mesh, tx, check_vma=False)
    assert kept(masks) == (32, 32)
    assert bool(pattern.holds(jnp.asarray(np.asarray(masks["a"]["kernel"]))))


def test_what_comes_back_is_counted_over_all_shards():
    mesh = jax.make_mesh((4, 2), EVERYTHING)
    tx = jaxprune.gradual(optax.sgd(0.25), 0.75, axis_names=EVERYTHING)

    def steps(params: Any) -> Any:
        state = tx.init(params)
        for _ in range(2):
            _, state = tx.update(params, state, params)  # the updates are never applied
        return state.health.came_back

    body = jax.shard_map(
        steps, mesh=mesh, in_specs=(SPECS,), out_specs=PartitionSpec(), check_vma=False
    )
    assert jax.jit(body)(placed(mesh, parameters())).tolist() == [96, 96]


def test_static_needs_no_names():
    mesh = jax.make_mesh((4, 2), EVERYTHING)
    tree = jax.tree.map(lambda leaf: leaf > 0, parameters())

    def steps(params: Any, masks: Any) -> Any:
        tx = jaxprune.static(optax.sgd(0.25), masks)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
        return params

    for check_vma in (True, False):
        body = jax.shard_map(
            steps, mesh=mesh, in_specs=(SPECS, SPECS), out_specs=SPECS, check_vma=check_vma
        )
        params = jax.jit(body)(placed(mesh, parameters()), placed(mesh, tree))
        for name, leaf in params.items():
            np.testing.assert_array_equal(leaf["kernel"] != 0, tree[name]["kernel"])


def test_grown_weights_start_with_the_mean_of_all_shards():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    nu = np.arange(16, dtype=np.float32)
    old = np.arange(16) % 3 > 0
    new = np.arange(16) % 3 < 2
    state, start, masks = ({"nu": {"w": x}} for x in (nu, np.zeros_like(nu), old))

    def restart(state: Any, start: Any, masks: Any, new: Any) -> Any:
        changes = jnp.array(True)
        return moments.mean_of_live(state, start, masks["nu"], {"w": new}, changes)

    body = jax.shard_map(
        restart, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data")
    )
    found = jax.jit(body)(state, start, masks, new)["nu"]["w"]
    alone = restart(*jax.tree.map(jnp.asarray, (state, start, masks, new)))["nu"]["w"]
    np.testing.assert_array_equal(found, alone)


TEXTS = {
    "no names": (
        {},
        "cannot read over which of the mesh axes ('data', 'model') an array of shape (4, 4) is "
        "split (shard_map with check_vma=False, or a replicated array). Pass axis_names= with "
        "those axes, or axis_names=() if every shard holds the whole.",
    ),
    "no shapes": (
        {"allocation": allocation.erdos_renyi_kernel, "axis_names": EVERYTHING},
        "allocation=erdos_renyi_kernel looks at the shapes of weights, which inside shard_map are "
        "those of one shard. Pass shapes={path: global shape}.",
    ),
    "channels": (
        {"pattern": Channel(-1), "axis_names": EVERYTHING},
        "pattern=Channel(axis=-1) cannot be used for 'a/kernel' inside shard_map: a slice is "
        "spread over several shards. Call update under jit with sharded arrays instead.",
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_what_cannot_be_known_is_asked_for(case: str):
    mesh = jax.make_mesh((4, 2), EVERYTHING)
    settings, text = TEXTS[case]
    with pytest.raises(ValueError) as error:
        train(mesh, jaxprune.gradual(optax.sgd(0.25), RAMP, **settings), check_vma=False)
    assert str(error.value) == text
