"""N:M training: what the loss sees, what the optimizer sees, along which axes, and what is refused.

Straight-through methods store dense weights; `gradual` stores masks and lowers n by a schedule.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxprune
from experiments import hlo
from jaxprune import NM, Unstructured, schedules
from tests.patterns import references
from tests.third_party import inner

SGD = inner(optax.sgd(0.125))
DECAY = 0.3


def draw(seed: int, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def weights(seed: int = 0, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    return {"kernel": draw(seed, 8, 16, dtype=dtype)}


def kept(weight: Any, n: int, m: int, axes: tuple[int, ...] = (0,)) -> np.ndarray:
    """The mask of the n largest magnitudes, slowly."""
    return references.nm(np.abs(np.asarray(weight, np.float32)), n, m, axes)


def listening(seen: list[Any]) -> optax.GradientTransformation:
    """An optimizer that notes its gradients."""

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        del params
        seen.append(grads)
        return grads, state

    return optax.GradientTransformation(lambda params: (), update)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_the_optimizer_sees_the_gradient_and_the_pull_of_pruned_weights(dtype: Any):
    params, grads, seen = weights(0, dtype), weights(1, dtype), []
    tx = jaxprune.sr_ste(listening(seen), NM(2, 4), decay=DECAY)
    tx.update(grads, tx.init(params), params)
    pruned = ~kept(params["kernel"], 2, 4)
    weight, grad = (np.asarray(x["kernel"], np.float32) for x in (params, grads))
    want = jnp.asarray(grad + np.float32(DECAY) * pruned * weight, dtype)  # rounded once
    np.testing.assert_array_equal(seen[0]["kernel"], want)
    assert seen[0]["kernel"].dtype == dtype


def test_without_decay_it_is_the_straight_through_estimator():
    def train(tx: Any) -> Any:
        params = weights()
        state = tx.init(params)
        for call in range(3):
            updates, state = tx.update(weights(10 + call), state, params)
            params = optax.apply_updates(params, updates)
        return params, jaxprune.get_masks(state)

    plain, none, some = (
        train(tx)
        for tx in (
            jaxprune.ste(SGD, NM(2, 4)),
            jaxprune.sr_ste(SGD, NM(2, 4), decay=0.0),
            jaxprune.sr_ste(SGD, NM(2, 4), decay=DECAY),
        )
    )
    jax.tree.map(np.testing.assert_array_equal, plain, none)
    assert (np.asarray(plain[0]["kernel"]) != np.asarray(some[0]["kernel"])).any()


def test_the_mask_is_that_of_the_present_weights():
    tx, params = (
        jaxprune.ste(inner(optax.sgd(1.0)), NM(1, 2)),
        {"kernel": jnp.array([[2.0], [1.0]])},
    )
    state = tx.init(params)
    updates, state = tx.update({"kernel": jnp.array([[0.0], [-3.0]])}, state, params)
    params = optax.apply_updates(params, updates)
    assert jaxprune.forward_params(params, state)["kernel"].ravel().tolist() == [0.0, 4.0]
    # Those of the state are the masks that the last loss was taken with.
    assert jaxprune.get_masks(state)["kernel"].ravel().tolist() == [True, False]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_gradients_are_the_same_inside_and_outside_of_the_differentiated_function(compiled: bool):
    tx, params, x = jaxprune.sr_ste(SGD, NM(2, 4)), weights(), draw(2, 4, 8)
    state = tx.init(params)

    def loss_fn(p: Any) -> jax.Array:
        return jnp.mean(jnp.tanh(x @ p["kernel"]) ** 2)

    def inside(p: Any) -> Any:
        return jax.value_and_grad(lambda p: loss_fn(jaxprune.forward_params(p, state)))(p)

    def outside(p: Any) -> Any:
        return jaxprune.value_and_grad(loss_fn)(p, state)

    found = [jax.jit(f)(params) if compiled else f(params) for f in (inside, outside)]
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert (np.asarray(found[0][1]["kernel"]) != 0.0).all()


KERNELS = {
    "dense [in, out]": (NM(2, 4), (8, 3), (0,)),
    "conv HWIO": (NM(2, 4), (3, 3, 8, 5), (2,)),
    "query [d, heads, head_dim]": (NM(1, 4, axis=0), (8, 2, 3), (0,)),
    "attention out [heads, head_dim, d]": (NM(1, 4, axis=(0, 1)), (2, 6, 3), (0, 1)),
    "torch [out, in]": (NM(2, 4, axis=-1), (3, 8), (1,)),
}


@pytest.mark.parametrize(("pattern", "shape", "axes"), KERNELS.values(), ids=KERNELS)
def test_groups_run_along_the_contracted_axes(
    pattern: NM, shape: tuple[int, ...], axes: tuple[int, ...]
):
    params = {"kernel": draw(3, *shape)}
    state = jaxprune.ste(SGD, pattern).init(params)
    mask = kept(params["kernel"], pattern.n, pattern.m, axes)
    want = np.where(mask, params["kernel"], 0.0)
    assert mask.mean() == pattern.n / pattern.m
    np.testing.assert_array_equal(jaxprune.forward_params(params, state)["kernel"], want)
    np.testing.assert_array_equal(jaxprune.final_params(params, state)["kernel"], want)
    average = {"kernel": draw(4, *shape)}  # of the weights over time: a mask of its own
    own = kept(average["kernel"], pattern.n, pattern.m, axes)
    final = jaxprune.final_params(average, state)["kernel"]
    np.testing.assert_array_equal(final, np.where(own, average["kernel"], 0.0))


def model() -> dict[str, Any]:
    return {
        "blocks": {"mlp": {"kernel": draw(5, 2, 8, 6)}, "out": {"kernel": draw(6, 2, 3, 4, 6)}},
        "embed": {"kernel": draw(7, 7, 8)},
    }


def test_every_layer_may_have_its_own_pattern_and_stacks_are_layer_by_layer():
    pattern = {"mlp": NM(1, 8), "out": NM(2, 6, axis=(0, 1))}
    tx = jaxprune.sr_ste(
        SGD, pattern, where=lambda path, leaf: "blocks" in path, layers={"blocks": 0}
    )
    params = model()
    seen = jaxprune.forward_params(params, tx.init(params))
    assert seen["embed"]["kernel"] is params["embed"]["kernel"]
    for layer in range(2):
        for name, n, m, axes in (("mlp", 1, 8, (0,)), ("out", 2, 6, (0, 1))):
            weight = params["blocks"][name]["kernel"][layer]
            want = np.where(kept(weight, n, m, axes), weight, 0.0)
            np.testing.assert_array_equal(seen["blocks"][name]["kernel"][layer], want)


@pytest.mark.parametrize(("packed", "bits"), [(False, 8), (True, 1)])
def test_the_state_is_a_mask(packed: bool, bits: int):
    params = weights()
    state: Any = jaxprune.sr_ste(optax.sgd(0.125), NM(2, 4), packed=packed).init(params)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state.masks)) * 8 == bits * 8 * 16
    assert not jax.tree.leaves((state.extra, state.inner_state))


def test_a_weight_split_along_a_free_axis_moves_nothing_and_sorts_nothing(mesh: Mesh):
    sharding = NamedSharding(mesh, PartitionSpec(None, ("data", "model")))
    tx = jaxprune.sr_ste(SGD, NM(2, 4))
    with jax.set_mesh(mesh):
        params = jax.device_put(weights(), {"kernel": sharding})
        state = jax.jit(tx.init)(params)

        @jax.jit
        def step(params: Any, state: Any) -> Any:
            seen = jaxprune.forward_params(params, state)
            return seen, tx.update(seen, state, params)

        program = step.lower(params, state).compile()
        seen, _ = program(params, state)
    assert not hlo.collectives(program)
    assert "sort" not in hlo.kinds(program)
    assert seen["kernel"].sharding.is_equivalent_to(sharding, 2)
    want = np.where(kept(weights()["kernel"], 2, 4), weights()["kernel"], 0.0)
    np.testing.assert_array_equal(seen["kernel"], want)


def test_gradual_lowers_n_in_every_group_and_keeps_what_is_left():
    schedule = schedules.linear(0.0, 0.75, begin=0, end=6)
    tx, params = jaxprune.gradual(SGD, schedule, pattern=NM(1, 4)), weights()
    state, before = tx.init(params), np.ones((8, 16), bool)
    counts = []
    for call in range(8):
        updates, state = tx.update(weights(20 + call), state, params)
        params = optax.apply_updates(params, updates)
        mask = np.asarray(jaxprune.get_masks(state)["kernel"])
        (count,) = set(mask.reshape(2, 4, 16).sum(axis=1).ravel().tolist())
        counts.append(count)
        assert not (mask & ~before).any()
        np.testing.assert_array_equal(np.asarray(params["kernel"]) != 0.0, mask)
        before = mask
    # ⌈4 (1 − s)⌉ at s = 0, 1/8, 2/8, ...: never sparser than the schedule.
    assert counts == [4, 4, 3, 3, 2, 2, 1, 1]


def test_gradual_takes_every_layer_to_its_own_n():
    pattern = {"one": NM(2, 4), "two": NM(1, 8)}
    params = {"one": {"kernel": draw(8, 8, 2)}, "two": {"kernel": draw(9, 8, 2)}}
    schedule = schedules.linear(0.0, 0.8, begin=0, end=4)
    tx = jaxprune.gradual(SGD, schedule, pattern=pattern)
    state, counts = tx.init(params), []
    for _ in range(5):
        _, state = tx.update(params, state, params)
        masks = jaxprune.get_masks(state)
        counts.append([int(masks[name]["kernel"][:, 0].sum()) for name in ("one", "two")])
    assert counts == [[8, 8], [8, 7], [6, 5], [6, 3], [4, 1]]


WHERE = "or exclude this parameter with where=."
MISFITS = {
    "a length": (
        NM(2, 5),
        {},
        f"NM(n=2, m=5) does not fit 'kernel' of shape (8, 16): axis 0 has length 8, not a multiple "
        f"of 5. Pass pad=True, another axis, {WHERE}",
    ),
    "a stack": (
        NM(2, 4),
        {"kernel": draw(0, 2, 8, 4)},
        "NM(n=2, m=4) does not fit 'kernel' of shape (2, 8, 4): the default axis -2 is the "
        "contracted one of [in, out] and HWIO kernels only, not at rank 3. Give the contracted "
        "axis as a non-negative number or a tuple, say with layers= which axis stacks layers, "
        f"{WHERE}",
    ),
    "a pattern of any sparsity": (
        {"kernel": Unstructured()},
        {},
        "pattern=Unstructured() of 'kernel' has no sparsity of its own. Pass NM(n, m), or "
        f"{{regex: NM(n, m)}}, {WHERE}",
    ),
}


@pytest.mark.parametrize(("pattern", "params", "text"), MISFITS.values(), ids=MISFITS)
def test_a_layer_that_the_pattern_does_not_fit_is_named(pattern: Any, params: Any, text: str):
    with pytest.raises(ValueError) as error:
        jaxprune.sr_ste(SGD, pattern).init(params or weights())
    assert str(error.value) == text


def test_what_the_message_advises_helps():
    params = {
        "mlp": weights(),
        "odd": {"kernel": draw(0, 6, 4)},
        "stack": {"kernel": draw(1, 2, 8, 4)},
    }

    def is_even(path: str, leaf: Any) -> bool:
        del leaf
        return "odd" not in path

    state = jaxprune.ste(SGD, NM(2, 4), where=is_even, layers={"stack": 0}).init(params)
    masks = jaxprune.get_masks(state)
    assert isinstance(masks["odd"]["kernel"], optax.MaskedNode)
    assert int(masks["stack"]["kernel"].sum()) == 2 * 4 * 4


def test_more_kept_than_there_are():
    with pytest.raises(ValueError) as error:
        jaxprune.ste(SGD, NM(5, 4))
    assert str(error.value) == (
        "NM: n must be in [1, m=4], got 5. It is the number of weights kept in every group of 4; "
        "2:4 is NM(2, 4)."
    )


@pytest.mark.parametrize("decay", [-1e-4, float("nan"), float("inf")])
def test_a_decay_out_of_range(decay: float):
    with pytest.raises(ValueError) as error:
        jaxprune.sr_ste(SGD, NM(2, 4), decay=decay)
    assert str(error.value) == (
        f"decay must be a finite number of 0 or more, got {decay}. It pulls pruned weights to zero "
        "through their gradients; the paper uses 2e-4."
    )
