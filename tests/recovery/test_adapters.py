"""What holds of every adapter: masks, dtypes, jit, merging; and what goes wrong with them."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import checkpoint, recovery
from tests.recovery.problems import Problem, adapters, changed, problem

KINDS = ("mask_lora", "scale_lora", "lora_prune", "full", "sparse_deltas")
ON_START = {"scale_lora": {"rtol": 1e-6}}  # its product is 1 up to rounding


@pytest.fixture(scope="module")
def float32() -> Problem:
    return problem()


@pytest.fixture(scope="module")
def bfloat16() -> Problem:
    return problem(jnp.bfloat16)


def check_equal(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_at_first_nothing_changes(kind: str, float32: Problem) -> None:
    p = float32
    seen = recovery.effective_params(p.params, p.masks, adapters(kind, p))
    close = ON_START.get(kind, {"rtol": 0.0})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), seen, p.params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_merging_keeps_the_mask(kind: str, dtype: str, request: pytest.FixtureRequest) -> None:
    p: Problem = request.getfixturevalue(dtype)
    trained = changed(adapters(kind, p))
    merged = recovery.merge(p.params, p.masks, trained)
    seen = recovery.effective_params(p.params, p.masks, trained)
    for name in ("query", "out"):
        mask = np.asarray(p.masks[name])
        assert merged[name].dtype == dtype
        assert (np.asarray(merged[name])[~mask] == 0).all()
        assert (np.asarray(merged[name])[mask] != np.asarray(p.params[name])[mask]).any() == (
            name in trained
        )
        # The function that was trained is the one that is kept, but for LoRA-Prune.
        cut = kind == "lora_prune"
        assert (np.asarray(seen[name])[~mask] != 0).any() == cut
        check_equal(np.asarray(seen[name])[mask], np.asarray(merged[name])[mask])
    assert all(
        leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(trained)
    )  # whatever the model's


def test_under_jit_as_without(float32: Problem) -> None:
    p = float32
    trained = {kind: changed(adapters(kind, p)) for kind in KINDS}

    def all_of(trained: Any) -> Any:
        return [recovery.merge(p.params, p.masks, trained[kind]) for kind in KINDS]

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        jax.jit(all_of)(trained),
        all_of(trained),
    )


def test_training_changes_the_adapters_alone(float32: Problem) -> None:
    p, tx = float32, optax.sgd(0.05, momentum=0.9)
    trained = adapters("mask_lora", p) | recovery.full(p.params, where=recovery.is_bias_or_norm)
    assert sorted(trained) == ["bias", "norm/scale", "out", "query"]
    assert recovery.count_trainable(trained) == 2 * (4 + 4) + 2 * (4 + 4) + 4 + 4

    @jax.jit
    def step(trained: Any, state: Any) -> Any:
        def loss(trained: Any) -> jax.Array:
            return p.loss(recovery.effective_params(p.params, p.masks, trained))

        value, slope = jax.value_and_grad(loss)(trained)
        updates, state = tx.update(slope, state, trained)
        return optax.apply_updates(trained, updates), state, value

    before, state, values = jax.tree.map(np.asarray, p.params), tx.init(trained), []
    for _ in range(30):
        trained, state, value = step(trained, state)
        values.append(float(value))
    assert values[-1] < 0.7 * values[0]
    check_equal(p.params, before)
    merged = recovery.merge(p.params, p.masks, trained)
    np.testing.assert_allclose(p.loss(merged), step(trained, state)[2], rtol=1e-5)
    for name in ("query", "out"):
        assert int((np.asarray(merged[name]) != 0).sum()) == int(p.masks[name].sum()) == 10


def test_factors_go_over_all_that_a_weight_contracts(float32: Problem) -> None:
    made = changed(adapters("mask_lora", float32))
    assert made["out"].a.shape == (4, 2)  # heads and head_dim together
    assert made["query"].b.shape == (2, 4)
    product = np.asarray(made["out"].a) @ np.asarray(made["out"].b)
    want = (made["out"].scale * product).reshape(2, 2, 4)
    seen = recovery.effective_params(float32.params, float32.masks, made)["out"]
    kept = np.asarray(float32.masks["out"])
    np.testing.assert_allclose(
        np.asarray(seen)[kept], (np.asarray(float32.params["out"]) + want)[kept], rtol=1e-5
    )


def test_a_low_rank_change_starts_as_lora_does() -> None:
    params = {"kernel": jnp.ones((64, 8))}
    made = recovery.lora(params, where="kernel", rank=4, alpha=8.0, key=jax.random.key(0))
    a = np.asarray(made["kernel"].a)
    assert 0.11 < np.abs(a).max() <= 1 / 8
    assert a.std() == pytest.approx(1 / 8 / np.sqrt(3), rel=0.1)  # uniform
    assert not np.asarray(made["kernel"].b).any()
    assert made["kernel"].scale == 2.0


def test_two_weights_are_drawn_apart() -> None:
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    made = recovery.lora(params, where="a|b", key=jax.random.key(0))
    assert (np.asarray(made["a"].a) != np.asarray(made["b"].a)).all()


def test_adapters_are_saved_and_restored(tmp_path: Path, float32: Problem) -> None:
    trained = {kind: changed(adapters(kind, float32)) for kind in KINDS}
    checkpoint.save(tmp_path, 0, trained)
    _, again = checkpoint.restore(tmp_path, jax.tree.map(jnp.zeros_like, trained))
    assert jax.tree.structure(again) == jax.tree.structure(trained)
    check_equal(again, trained)


KERNEL = {"kernel": jnp.ones((2, 2))}
MASK = {"kernel": jnp.eye(2, dtype=bool)}
KEY = jax.random.key(0)


def lora_of(params: Any) -> Any:
    return recovery.lora(params, where=".", rank=1, key=KEY)


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "unknown path": (
        lambda: recovery.merge({"other": jnp.ones((2, 2))}, None, lora_of(KERNEL)),
        ValueError,
        "adapters has an entry without a parameter: 'kernel'. The parameters are other. Pass "
        "adapters made for these parameters.",
    ),
    "another shape": (
        lambda: recovery.merge({"kernel": jnp.ones((2, 3))}, None, lora_of(KERNEL)),
        ValueError,
        "the adapter of 'kernel' is for shape (2, 2), its parameter has (2, 3). Pass adapters "
        "made for these parameters.",
    ),
    "no mask": (
        lambda: recovery.merge(KERNEL, None, recovery.mask_lora(KERNEL, MASK, key=KEY)),
        ValueError,
        "'kernel' has a MaskLoRA and no mask, without which pruned weights would come back. Pass "
        "the masks that the adapters were made with.",
    ),
    "no masks at all": (
        lambda: recovery.mask_lora(KERNEL, None, key=KEY),
        ValueError,
        "masks holds no mask. Pass the masks that jaxprune.prune, make_masks, prune_blocks or "
        "get_masks returned.",
    ),
    "where without a mask": (
        lambda: recovery.mask_lora(
            KERNEL | {"head": jnp.ones((2, 2))}, MASK, key=KEY, where="head|kernel"
        ),
        ValueError,
        "where selects head, which masks has no entry for. Leave it out, or adapt it with "
        "recovery.lora, which needs no mask.",
    ),
    "no matrix": (
        lambda: lora_of({"query": jnp.ones((4, 2, 2))}),
        ValueError,
        "'query' has shape (4, 2, 2), and only a matrix tells its inputs from its outputs by "
        "itself. Pass graph=jaxprune.trace(apply, params, inputs), or leave it out with where=.",
    ),
    "rank 0": (
        lambda: recovery.scale_lora(KERNEL, MASK, rank=0),
        ValueError,
        "rank must be 1 or more, got 0. It is the columns of a.",
    ),
    "rank 1.5": (
        lambda: recovery.mask_lora(KERNEL, MASK, rank=1.5, key=KEY),
        TypeError,
        "rank must be an integer, got 1.5 of type float.",
    ),
    "alpha": (
        lambda: recovery.lora_prune(KERNEL, MASK, alpha=0.0, key=KEY),
        ValueError,
        "alpha must be a positive number, got 0.0. The change is multiplied with alpha / rank.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_adapted(case: str) -> None:
    call, kind, text = WRONG[case]
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == text
