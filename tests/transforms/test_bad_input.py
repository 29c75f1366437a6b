"""What a user may get wrong: the full text of every error, before anything has changed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import NM, Channel, allocation, schedules, scores
from jaxprune.transforms import gradual, granet, itop, rigl, set_training, static

SGD = optax.sgd(0.1)


def parameters() -> dict[str, Any]:
    return {"layer": {"kernel": jnp.arange(1.0, 65.0).reshape(8, 8), "bias": jnp.ones(8)}}


def integers() -> dict[str, Any]:
    return {"table": jnp.ones((8, 8), jnp.int32), "kernel": jnp.ones((8, 8))}


class Stairs:
    """A schedule that goes too far."""

    begin, end = 0, 2

    def __call__(self, step: Any) -> Any:
        raise AssertionError

    def at(self, step: int) -> float:
        return 0.5 * step

    def __repr__(self) -> str:
        return "Stairs()"


def too_many(step: Any) -> float:
    del step
    return 1.5


def wrong_shape(params: Any, grads: Any) -> Any:
    del grads
    return jax.tree.map(lambda leaf: leaf[0], params)


def whole_numbers(params: Any, grads: Any) -> Any:
    del grads
    return jax.tree.map(lambda leaf: leaf.astype(jnp.int32), params)


def nothing(params: Any, grads: Any) -> Any:
    del params, grads
    return {}


HERE = __name__
A_SPARSITY = "A sparsity is the share of zeros: 0.9 prunes 90% of the weights."
A_DROP = "It is the share of a layer's live weights that an update drops and grows anew."
MASKS = "Pass masks made for these parameters."
A_SCORE = "A score is a function (params, grads) -> tree like params."

BUILD = {
    "sparsity 1": (
        lambda: gradual(SGD, 1.0),
        ValueError,
        f"sparsity must be a finite number in [0, 1), got 1.0. {A_SPARSITY}",
    ),
    "sparsity below 0": (
        lambda: gradual(SGD, -0.1),
        ValueError,
        f"sparsity must be a finite number in [0, 1), got -0.1. {A_SPARSITY}",
    ),
    "sparsity NaN": (
        lambda: gradual(SGD, float("nan")),
        ValueError,
        f"sparsity must be a finite number in [0, 1), got nan. {A_SPARSITY}",
    ),
    "sparsity a text": (
        lambda: gradual(SGD, "0.9"),
        TypeError,
        f"sparsity must be a number in [0, 1), got '0.9' of type str. {A_SPARSITY}",
    ),
    "a tabulated schedule that leaves its range": (
        lambda: gradual(SGD, Stairs()),
        ValueError,
        "sparsity=Stairs() gives 1.0 at step 2; a sparsity is the share of zeros, in [0, 1). "
        "Correct the schedule.",
    ),
    "a schedule that starts outside its range": (
        lambda: gradual(SGD, too_many),
        ValueError,
        f"sparsity={HERE}.too_many gives 1.5 at step 0; a sparsity is the share of zeros, in "
        "[0, 1). Correct the schedule.",
    ),
    "every 0": (
        lambda: gradual(SGD, 0.5, every=0),
        ValueError,
        "every must be 1 step or more, got 0.",
    ),
    "every no integer": (
        lambda: gradual(SGD, 0.5, every=2.0),
        TypeError,
        "every must be an integer number of steps, got 2.0 of type float.",
    ),
    "a target that N:M does not have": (
        lambda: gradual(SGD, schedules.cubic(0.0, 0.9, begin=0, end=9), pattern=NM(2, 4)),
        ValueError,
        "sparsity=0.9 cannot be reached with pattern=NM(n=2, m=4), whose sparsity is 0.5. Pass "
        "sparsity=0.5, or another pattern.",
    ),
    "no optimizer": (
        lambda: gradual(0.1, 0.5),
        TypeError,
        "inner must be an optax optimizer, got float. Wrap one: gradual(optax.adamw(1e-3), ...).",
    ),
    "a drop that is no number": (
        lambda: rigl(SGD, 0.5, end=9, every=3, drop="half"),
        TypeError,
        f"drop must be a number in [0, 1), got 'half' of type str. {A_DROP}",
    ),
    "a drop that becomes everything": (
        lambda: granet(SGD, 0.5, end=9, every=3, drop=lambda step: step / 6),
        ValueError,
        f"drop at step 6 must be a share in [0, 1), got 1.0. {A_DROP}",
    ),
    "begin no integer": (
        lambda: set_training(SGD, 0.5, end=9, every=3, begin=1.5),
        TypeError,
        "begin must be a step, an integer, got 1.5 of type float.",
    ),
    "a growth by name": (
        lambda: itop(SGD, 0.5, end=9, every=3, growth="gradient"),
        TypeError,
        "growth must be a function (moment, key) -> {path: scores}, got 'gradient' of type str. "
        "Pass jaxprune.growth.gradient, random or momentum().",
    ),
    "masks that are not boolean": (
        lambda: static(SGD, {"kernel": jnp.ones((8, 8))}),
        TypeError,
        "the mask of 'kernel' has dtype float32, not bool. Masks are boolean, True = kept; "
        "convert with mask.astype(bool).",
    ),
    "no masks": (
        lambda: static(SGD, {"kernel": optax.MaskedNode()}),
        ValueError,
        "masks holds no mask: nothing would be pruned. Make masks with jaxprune.make_masks or "
        "jaxprune.prune.",
    ),
}

INIT = {
    "nothing selected": (
        lambda: gradual(SGD, 0.5, where="attention"),
        parameters,
        ValueError,
        "where='attention' selects none of the 2 parameters (layer/bias, layer/kernel). Pass a "
        "regular expression that is found in a path, a function of (path, leaf), or a tree of "
        "bools.",
    ),
    "a where of another model": (
        lambda: gradual(SGD, 0.5, where={"layer": {"weight": True}}),
        parameters,
        ValueError,
        "where does not match the parameters: no entry for layer/bias, layer/kernel; entries "
        "without a parameter: layer/weight. Give a tree of bools with the parameters' structure, "
        "a regular expression, or a function of (path, leaf).",
    ),
    "integer parameters selected": (
        lambda: gradual(SGD, 0.5, where="table"),
        integers,
        TypeError,
        "where='table' selects 'table' of dtype int32: only floating-point parameters can be "
        "pruned. Exclude it with where=.",
    ),
    "integer parameters with a mask": (
        lambda: static(SGD, {"table": np.ones((8, 8), bool)}),
        integers,
        TypeError,
        "masks has an entry for 'table' of dtype int32: only floating-point parameters can be "
        "pruned. Leave it out of masks.",
    ),
    "masks of another model": (
        lambda: static(SGD, {"layer": {"weight": np.ones((8, 8), bool)}}),
        parameters,
        ValueError,
        "masks has entries without a parameter: layer/weight. The parameters are layer/bias, "
        f"layer/kernel. {MASKS}",
    ),
    "masks of another shape": (
        lambda: static(SGD, {"layer": {"kernel": np.ones((8, 4), bool)}}),
        parameters,
        ValueError,
        "the mask of 'layer/kernel' has shape (8, 4), its parameter (8, 8). " + MASKS,
    ),
    "a pattern that does not fit": (
        lambda: gradual(SGD, 0.4, pattern=NM(3, 5)),
        parameters,
        ValueError,
        "NM(n=3, m=5) does not fit 'layer/kernel' of shape (8, 8): axis 0 has length 8, not a "
        "multiple of 5. Pass pad=True, another axis, or exclude this parameter with where=.",
    ),
    "a channel axis that is not there, from the start": (
        lambda: rigl(SGD, 0.5, end=9, every=3, pattern=Channel(3)),
        parameters,
        ValueError,
        "Channel(axis=3) does not fit 'layer/kernel' of shape (8, 8): it has no axis 3. Give "
        "another axis, or exclude this parameter with where=.",
    ),
    "a parameter without a pattern": (
        lambda: gradual(SGD, 0.5, pattern={"attention": NM(2, 4)}),
        parameters,
        ValueError,
        "pattern has no entry for 'layer/kernel'; its expressions are 'attention'. Add '.*': "
        "Unstructured() as the last entry, or exclude the parameter with where=.",
    ),
    "a ranking of single weights with a pattern": (
        lambda: gradual(SGD, 0.5, pattern=NM(2, 4), allocation=allocation.global_()),
        parameters,
        ValueError,
        "allocation=Global(min_density=0.0, min_kept=0) ranks single weights and cannot serve "
        "pattern=NM(n=2, m=4). Use Unstructured(), or another allocation.",
    ),
    "layers that no parameter has": (
        lambda: gradual(SGD, 0.5, layers={"blocks": 0}),
        parameters,
        ValueError,
        "layers has 'blocks', which is found in none of the prunable parameters (layer/kernel). "
        "Correct the expression.",
    ),
    "layers along no axis": (
        lambda: gradual(SGD, 0.5, layers={"layer": 2}),
        parameters,
        ValueError,
        "layers={'layer': 2} names no axis of 'layer/kernel' of shape (8, 8).",
    ),
    "an allocation by a name that is not there": (
        lambda: gradual(SGD, 0.5, allocation=allocation.per_layer({"head": 0.5})),
        parameters,
        ValueError,
        "per_layer: the regex 'head' is found in none of the paths 'layer/kernel'. Correct it or "
        "leave it out.",
    ),
    "a floor above what is left": (
        lambda: gradual(SGD, 0.5, allocation=allocation.global_(min_kept=40)),
        parameters,
        ValueError,
        "Global(min_density=0.0, min_kept=40) keeps at least 40 weights, but sparsity=0.5 leaves "
        "32 of 64. Lower the floor or the sparsity.",
    ),
    "an allocation of the host with a schedule without a window": (
        lambda: gradual(
            SGD, optax.constant_schedule(0.5), allocation=allocation.erdos_renyi_kernel
        ),
        parameters,
        ValueError,
        "allocation=erdos_renyi_kernel is computed on the host and needs a schedule with a "
        "window. Use one of jaxprune.schedules, such as schedules.cubic(0.0, 0.9, begin=1000, "
        "end=7000).",
    ),
    "global shapes that lack a parameter": (
        lambda: gradual(SGD, 0.5, shapes={"head": (8, 8)}),
        parameters,
        ValueError,
        "shapes has no entry for layer/kernel; its entries are head. Pass the global shape of "
        "every prunable parameter by path.",
    ),
    "micro-steps inside": (
        lambda: gradual(optax.chain(optax.MultiSteps(SGD, 2).gradient_transformation()), 0.5),
        parameters,
        ValueError,
        "inner holds optax.MultiSteps: the schedule would count micro-steps. Put MultiSteps "
        "outside: optax.MultiSteps(gradual(inner, ...), every_k_schedule=k).",
    ),
}


def _broken() -> Any:
    params = parameters()
    params["layer"]["kernel"] = params["layer"]["kernel"].at[0, :2].set(jnp.nan)
    return params


def _renamed(params: Any) -> Any:
    return {"other": params["layer"]}


SCORE = f"score={HERE}."
UPDATE = {
    "no parameters": (
        {},
        lambda params: (params, None),
        ValueError,
        "update was called without params. A pruned weight is set to zero by the update -param: "
        "call tx.update(grads, opt_state, params).",
    ),
    "parameters of another model": (
        {},
        lambda params: (params, _renamed(params)),
        ValueError,
        "params has no leaf for the masks of layer/kernel; its leaves are other/bias, "
        "other/kernel. Pass the params of the model that tx.init saw.",
    ),
    "parameters of a narrower model": (
        {},
        lambda params: (params, jax.tree.map(lambda leaf: leaf[:4], params)),
        ValueError,
        "params has shape (4, 8) for 'layer/kernel', whose mask is stored as (8, 8): the masks are "
        "those of another model. Pass the params of the model that tx.init saw.",
    ),
    "gradients of a narrower model, with packed masks": (
        {"packed": True},
        lambda params: (jax.tree.map(lambda leaf: leaf[:4], params), params),
        ValueError,
        "grads has shape (4, 8) for 'layer/kernel', whose mask is stored as (8, 1): the masks are "
        "those of another model. Pass the grads of the model that tx.init saw.",
    ),
    "gradients of another model": (
        {},
        lambda params: (_renamed(params), params),
        ValueError,
        "grads has no leaf for the masks of layer/kernel; its leaves are other/bias, "
        "other/kernel. Pass the grads of the model that tx.init saw.",
    ),
    "NaN weights": (
        {},
        lambda params: (params, _broken()),
        ValueError,
        "score 'layer/kernel' has 2 NaN entries of 64. Check the gradients or the parameters that "
        "it was computed from, or replace NaN before the selection.",
    ),
    "NaN gradients": (
        {"score": scores.taylor},
        lambda params: (_broken(), params),
        ValueError,
        "score 'layer/kernel' has 2 NaN entries of 64. Check the gradients or the parameters that "
        "it was computed from, or replace NaN before the selection.",
    ),
    "scores of another shape": (
        {"score": wrong_shape},
        lambda params: (params, params),
        ValueError,
        f"{SCORE}wrong_shape must return scores of shape (8, 8) for 'layer/kernel', got shape "
        f"(8,). {A_SCORE}",
    ),
    "no scores": (
        {"score": nothing},
        lambda params: (params, params),
        ValueError,
        f"{SCORE}nothing must return scores of shape (8, 8) for 'layer/kernel', got none. "
        f"{A_SCORE}",
    ),
    "integer scores": (
        {"score": whole_numbers},
        lambda params: (params, params),
        TypeError,
        f"{SCORE}whole_numbers must return floating-point scores, got int32 for 'layer/kernel'. "
        "Convert them with .astype(jnp.float32).",
    ),
}

MAKE = {
    "sparsity 1": (
        lambda: jaxprune.prune(parameters(), 1.0),
        ValueError,
        f"sparsity must be a finite number in [0, 1), got 1.0. {A_SPARSITY}",
    ),
    "sparsity NaN": (
        lambda: jaxprune.make_masks(parameters(), np.nan),
        ValueError,
        f"sparsity must be a finite number in [0, 1), got nan. {A_SPARSITY}",
    ),
    "n above m": (
        lambda: jaxprune.prune(parameters(), 0.5, pattern=NM(5, 4)),
        ValueError,
        "NM: n must be in [1, m=4], got 5. It is the number of weights kept in every group of 4; "
        "2:4 is NM(2, 4).",
    ),
    "m 0": (
        lambda: jaxprune.prune(parameters(), 0.5, pattern=NM(0, 0)),
        ValueError,
        "NM: m must be 1 or more, got 0. It is the size of a group.",
    ),
    "a target that N:M does not have": (
        lambda: jaxprune.make_masks(parameters(), 0.75, pattern=NM(2, 4)),
        ValueError,
        "sparsity=0.75 cannot be reached with pattern=NM(n=2, m=4), whose sparsity is 0.5. Pass "
        "sparsity=0.5, or another pattern.",
    ),
    "nothing selected": (
        lambda: jaxprune.prune(parameters(), 0.5, where=lambda path, leaf: False),
        ValueError,
        "where=<lambda> selects none of the 2 parameters (layer/bias, layer/kernel). Pass a "
        "regular expression that is found in a path, a function of (path, leaf), or a tree of "
        "bools.",
    ),
    "integer parameters selected": (
        lambda: jaxprune.prune(integers(), 0.5, where="table"),
        TypeError,
        "where='table' selects 'table' of dtype int32: only floating-point parameters can be "
        "pruned. Exclude it with where=.",
    ),
    "NaN scores": (
        lambda: jaxprune.make_masks(_broken(), 0.5),
        ValueError,
        "score 'layer/kernel' has 2 NaN entries of 64. Check the gradients or the parameters that "
        "it was computed from, or replace NaN before the selection.",
    ),
    "masks of another model": (
        lambda: jaxprune.apply_masks(parameters(), {"kernel": np.ones((8, 8), bool)}),
        ValueError,
        "masks has entries without a parameter: kernel. The parameters are layer/bias, "
        f"layer/kernel. {MASKS}",
    ),
    "masks of another shape": (
        lambda: jaxprune.apply_masks(parameters(), {"layer": {"bias": np.ones(4, bool)}}),
        ValueError,
        f"the mask of 'layer/bias' has shape (4,), its parameter (8,). {MASKS}",
    ),
    "masks that are not boolean": (
        lambda: jaxprune.apply_masks(parameters(), {"layer": {"bias": np.ones(8)}}),
        TypeError,
        "the mask of 'layer/bias' has dtype float64, not bool. Masks are boolean, True = kept; "
        "convert with mask.astype(bool).",
    ),
    "a channel axis that is not there": (
        lambda: jaxprune.prune(parameters(), 0.5, pattern=Channel(3)),
        ValueError,
        "Channel(axis=3) does not fit 'layer/kernel' of shape (8, 8): it has no axis 3. Give "
        "another axis, or exclude this parameter with where=.",
    ),
    "an allocation that cannot be called": (
        lambda: allocation.global_()({"kernel": (8, 8)}, 0.5),
        TypeError,
        "global_ has no densities without scores: it ranks all weights together. Pass it as "
        "allocation= to make_masks, prune or a transform, instead of calling it.",
    ),
}


@pytest.mark.parametrize("case", MAKE)
def test_masks_cannot_be_made(case: str):
    call, kind, text = MAKE[case]
    _assert_raises(call, kind, text)


@pytest.mark.parametrize("case", BUILD)
def test_a_transform_cannot_be_built(case: str):
    build, kind, text = BUILD[case]
    _assert_raises(build, kind, text)


@pytest.mark.parametrize("case", INIT)
def test_a_transform_does_not_fit_a_model(case: str):
    build, model, kind, text = INIT[case]
    params = model()
    before = jax.tree.map(np.array, params)
    _assert_raises(lambda: build().init(params), kind, text)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, before))


@pytest.mark.parametrize("case", UPDATE)
def test_an_update_fails_and_changes_nothing(case: str):
    settings, arguments, kind, text = UPDATE[case]
    tx, params = gradual(optax.sgd(0.1, momentum=0.9), 0.5, **settings), parameters()
    state = tx.init(params)
    before = jax.tree.map(np.array, (params, state))
    grads, given = arguments(params)
    _assert_raises(lambda: tx.update(grads, state, given), kind, text)
    assert jax.tree.all(jax.tree.map(np.array_equal, (params, state), before))
    _, state = tx.update(params, state, params) if not settings else (None, state)
    assert int(jnp.asarray(state.step)) == (0 if settings else 1)


def test_a_schedule_that_leaves_its_range_on_the_way_fails_outside_jit():
    def doubles(step: Any) -> jax.Array:
        return jnp.asarray(step, jnp.float32) * 0.5

    tx, params = gradual(SGD, doubles), parameters()
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update(params, state, params)
    _assert_raises(
        lambda: tx.update(params, state, params),
        ValueError,
        f"sparsity={HERE}.{doubles.__qualname__} gives 1.0 at step 2; a sparsity is the share of "
        "zeros, in [0, 1). Correct the schedule.",
    )


def _assert_raises(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as error:
        call()
    assert type(error.value) is kind
    assert str(error.value) == text
