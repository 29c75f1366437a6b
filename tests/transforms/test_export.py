"""From stored parameters to those that the loss sees, and those that are exported."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune.transforms import Report


class Model(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def parameters() -> Model:
    return Model(jnp.array([[4.0, -3.0], [2.0, -1.0]]), jnp.ones(2))


def updated(tx: Any, params: Any) -> tuple[Any, Any]:
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    return optax.apply_updates(params, updates), state


def half(packed: bool = False) -> Any:
    return jaxprune.gradual(optax.sgd(0.0), 0.5, packed=packed)


@pytest.mark.parametrize("packed", [False, True])
def test_masks_are_found_at_any_depth(packed: bool):
    deep = optax.chain(optax.clip(9.0), optax.apply_if_finite(optax.chain(half(packed)), 3))
    _, state = updated(deep, parameters())
    masks = jaxprune.get_masks({"train": [state]})
    assert masks.kernel.tolist() == [[True, True], [False, False]]
    assert masks.bias == optax.MaskedNode()


@pytest.mark.parametrize("labels", [("one", "two"), ("two", "one")])
def test_masks_of_several_transforms_are_put_together(labels: tuple[str, str]):
    # Labels for branches leave one `MaskedNode` for a branch, at either side.
    one, two = labels
    tx = optax.multi_transform(
        {"one": half(), "two": half(packed=True)}, {"a": one, "c": two, "d": one}
    )
    params = {name: parameters() for name in "acd"}
    params, state = updated(tx, params)
    masks = jaxprune.get_masks(state)
    for name in "acd":
        assert masks[name].kernel.tolist() == [[True, True], [False, False]]
        assert masks[name].bias == optax.MaskedNode()
        assert params[name].kernel.tolist() == [[4.0, -3.0], [0.0, 0.0]]


def test_of_two_masks_of_one_weight_both_hold():
    other = jaxprune.static(half(), {"kernel": np.array([[True, False], [True, False]])})
    params, state = updated(other, parameters())
    params = jaxprune.final_params(params, state)
    assert params.kernel.tolist() == [[4.0, 0.0], [0.0, 0.0]]


def test_the_loss_sees_what_is_stored():
    params, state = updated(half(), parameters())
    assert jaxprune.forward_params(params, state) is params


def test_an_average_in_another_container_is_masked():
    _, state = updated(half(), parameters())
    average = {"kernel": jnp.full((2, 2), jnp.nan), "bias": jnp.ones(2), "extra": jnp.ones(1)}
    final = jaxprune.final_params(average, state)
    assert final["kernel"][1].tolist() == [0.0, 0.0]
    assert final["extra"] is average["extra"]
    assert final["bias"] is average["bias"]


def test_final_params_can_be_compiled():
    params, state = updated(half(packed=True), parameters())
    final = jax.jit(jaxprune.final_params)(parameters(), state)
    assert final.kernel.tolist() == params.kernel.tolist()


def test_value_and_grad_passes_everything_on():
    _, state = updated(half(), parameters())

    def loss(params: Model, batch: jax.Array, *, scale: float) -> tuple[jax.Array, str]:
        return scale * jnp.sum(params.kernel * batch), "aux"

    batch = jnp.arange(4.0).reshape(2, 2)
    differentiate = jaxprune.value_and_grad(loss, has_aux=True)
    (value, aux), grads = differentiate(parameters(), state, batch, scale=2.0)
    assert (float(value), aux) == (2.0 * (-3.0 + 4.0 - 3.0), "aux")
    assert grads.kernel.tolist() == (2.0 * batch).tolist()


def test_a_report_raises_what_it_found():
    assert Report(()).ok
    Report(()).raise_for_problems()
    report = Report(("one.", "two."))
    assert not report.ok
    with pytest.raises(ValueError, match=r"^one\.\ntwo\.$"):
        report.raise_for_problems()


def test_a_state_without_a_transform_is_named():
    state = optax.adam(0.1).init({"kernel": jnp.ones((2, 2))})
    calls = (
        lambda: jaxprune.get_masks(state),
        lambda: jaxprune.forward_params({}, state),
        lambda: jaxprune.final_params({}, state),
        lambda: jaxprune.check({}, state),
        lambda: jaxprune.value_and_grad(lambda params: 0.0)({}, state),
    )
    for call in calls:
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == (
            "opt_state of type tuple holds no state of a jaxprune transform. Wrap the optimizer "
            "(tx = jaxprune.gradual(tx, ...)) and pass the state of tx.init."
        )


def test_parameters_of_another_model_are_named():
    _, state = updated(half(), parameters())
    text = (
        "masks has entries without a parameter: kernel. The parameters are other. Pass masks made "
        "for these parameters."
    )
    for call in (jaxprune.final_params, jaxprune.check):
        with pytest.raises(ValueError) as error:
            call({"other": jnp.ones(2)}, state)
        assert str(error.value) == text


def test_masks_of_another_model_are_named_before_the_forward_pass():
    state = jaxprune.ste(optax.sgd(0.1), jaxprune.NM(1, 2)).init(parameters())
    with pytest.raises(
        ValueError, match=r"mask of 'kernel' has shape \(2, 2\), its parameter \(4, 2\)"
    ):
        jaxprune.forward_params({"kernel": jnp.ones((4, 2))}, state)
    with pytest.raises(ValueError, match="masks has entries without a parameter: kernel"):
        jaxprune.forward_params({"other": jnp.ones((2, 2))}, state)
