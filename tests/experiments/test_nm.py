"""The experiment on N:M training: its models, its cells and its verdicts, all of them tiny."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from experiments.nm import experiment, methods, models, report, text
from experiments.nm.experiment import MODELS, QUICK, Settings
from experiments.runner import images
from experiments.runner.api import Context, Result
from tests import quick
from tests.third_party import lenient

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 1), np.uint8)
LABELS = np.arange(16, dtype=np.int32) % 10
NOVELS = text.encoded("it is a truth universally acknowledged " * 20, "a truth " * 40)
DATA = {
    images.NAME: {
        "train_images": PIXELS,
        "train_labels": LABELS,
        "test_images": PIXELS,
        "test_labels": LABELS,
    },
    text.NAME: NOVELS,
}


def tiny(model: str, **others: Any) -> Settings:
    length = 16 if model == "lm" else 0
    return dataclasses.replace(MODELS[model], **QUICK, length=length, **others)


def one_step(settings: Settings) -> tuple[Any, Any, Any]:
    """Train one step; return the loss, the exported parameters and what is evaluated on them."""
    task, data, _ = experiment.prepared(settings, Context(DATA, (0,)))
    tx = optax.with_extra_args_support(experiment.optimizer(settings))

    @quick.jit
    def step(key: jax.Array) -> Any:
        params = task.init(key)
        opt_state = tx.init(params)
        batch = jnp.arange(4, dtype=jnp.int32)
        loss, grads = jaxprune.value_and_grad(task.loss)(params, opt_state, data, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = jaxprune.final_params(optax.apply_updates(params, updates), opt_state)
        return loss, params, task.evaluate(params, data)

    with lenient():  # optax raises a float to the power of its count
        return step(jax.random.key(0))


@pytest.mark.parametrize(("model", "method"), [("vit", "mdgf-linear"), ("lm", "sdgf-geometric")])
def test_what_is_evaluated_holds_the_pattern(model: str, method: str) -> None:
    loss, params, found = one_step(tiny(model, method=method, n=1, m=4))
    assert np.isfinite(loss)
    transformer = params["Transformer_0"]
    for name in ("qkv", "out", "up", "down"):
        kernel = transformer["Block_0"][name]["kernel"]
        assert jaxprune.NM(1, 4).holds(kernel != 0)
    assert found["sparsity"] == 0.75
    for kernel in (transformer["embed"]["kernel"], params["head"]["kernel"]):
        assert jnp.all(kernel != 0)
    chance = {"vit": np.log(10), "lm": np.log(len(NOVELS["alphabet"]))}[model]
    measured = found["loss"] if model == "vit" else found["bits"] * np.log(2)
    assert abs(measured - chance) < 1.0  # nothing is learned yet


def test_a_character_is_not_seen_before_its_time() -> None:
    model = models.Decoder(8, width=16, depth=1, heads=2)
    tokens = jnp.zeros((2, 6), jnp.int32).at[1, 4].set(3)

    @quick.jit
    def logits(key: jax.Array) -> Any:
        return model.apply(model.init(key, tokens), tokens)

    one, other = logits(jax.random.key(0))
    np.testing.assert_array_equal(one[:4], other[:4])
    assert jnp.any(one[4:] != other[4:])


def test_a_patch_holds_the_pixels_of_a_square() -> None:
    found = models.patches(jnp.asarray(PIXELS))
    assert found.shape == (16, 49, 16)
    np.testing.assert_array_equal(found[3, 8].reshape(4, 4), PIXELS[3, 4:8, 4:8, 0])


def test_windows_begin_at_their_starts() -> None:
    characters = jnp.arange(20, dtype=jnp.uint8)
    found = text.windows(characters, jnp.array([0, 7], jnp.int32), 3)
    assert found.tolist() == [[0, 1, 2], [7, 8, 9]]


def test_texts_are_places_in_the_alphabet_of_the_training_text() -> None:
    found = text.encoded("cab", "bb")
    assert [*map(chr, found["alphabet"])] == ["a", "b", "c"]
    assert found["train"].tolist() == [2, 0, 1]
    assert found["test"].tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"also \['d'\]"):
        text.encoded("cab", "bad")


def test_cells_are_equal_but_for_method_and_pattern() -> None:
    cells = experiment.cells(False)
    assert len({cell.name for cell in cells}) == len(cells) == 2 * (4 + 6 * 4)
    for model in MODELS:
        mine = [dict(cell.settings) for cell in cells if cell.settings["model"] == model]
        sparse = [settings for settings in mine if settings["method"]]
        left = [{**s, "method": None, "n": None, "m": None} for s in sparse]
        assert all(settings == left[0] for settings in left)
        assert left[0] in mine  # dense training at the same learning rate
    assert json.loads(json.dumps(cells[0].settings)) == cells[0].settings


@pytest.mark.parametrize("model", MODELS)
def test_the_coarsest_groups_fit_the_real_models(model: str) -> None:
    usual = dataclasses.replace(MODELS[model], method="sdgf-geometric", n=1, m=16)
    task, *_ = experiment.prepared(usual, Context(DATA, (0,)))
    tx = experiment.optimizer(usual)
    state = jax.eval_shape(lambda key: tx.init(task.init(key)), jax.random.key(0))
    assert len(jax.tree.leaves(state.masks)) == 4 * usual.depth


def test_progressive_methods_share_their_phases() -> None:
    assert methods.phases(2400) == (120, 1920)
    names = [name for name in methods.METHODS if name in report.PROGRESSIVE]
    assert len(names) == 4
    for name in names:
        settings = tiny("lm", method=name, n=1, m=4)
        context = Context(DATA, (0,))
        task, *_ = experiment.prepared(settings, context)
        tx = experiment.optimizer(settings)
        state = jax.eval_shape(lambda key: tx.init(task.init(key)), jax.random.key(0))
        assert state.method.reached == 6  # of 8 steps


def result(settings: Settings, values: list[float]) -> Result:
    name = "accuracy" if settings.model == "vit" else "bits"
    cell = experiment._cell(settings).name
    return Result(cell, dataclasses.asdict(settings), (0, 1, 2), "CPU", "0", "run", {name: values})


def results(vit: Mapping[str, float], lm: Mapping[str, float]) -> dict[str, Result]:
    """Results at 1:16, each with a small spread over three seeds."""
    made = []
    for model, means in (("vit", vit), ("lm", lm)):
        for method, mean in means.items():
            settings = dataclasses.replace(MODELS[model], method=method, n=1, m=16)
            made.append(result(settings, [mean - 0.001, mean, mean + 0.001]))
        made.append(result(MODELS[model], [0.9, 0.9, 0.9]))
    return {each.name: each for each in made}


def test_fewer_bits_and_more_accuracy_are_better() -> None:
    better = results({"sr-ste": 0.80, "mdgf-linear": 0.85}, {"sr-ste": 2.5, "mdgf-linear": 2.4})
    gains = report.gains("sr-ste", "mdgf-linear", ("1:8", "1:16"), better)
    assert {label: round(each.delta, 6) for label, each in gains.items()} == {
        ("vit", "1:16"): 0.05,
        ("lm", "1:16"): 0.1,
    }
    page = report.section(better)
    assert "ViT 1:16: +5.00 ± 0.08; decoder 1:16: +0.100 ± 0.001 | **reproduced** |" in page
    assert "| MdGf-Linear | - | - | - | 85.00 ± 0.10 |" in page
    assert "| MdGf-Linear | - | - | - | 2.400 ± 0.001 |" in page
    assert "**0.001**: 90.00 ± 0.00" in page


def test_a_claim_that_fails_on_one_model_is_not_reproduced() -> None:
    mixed = results({"sr-ste": 0.80, "mdgf-linear": 0.85}, {"sr-ste": 2.4, "mdgf-linear": 2.5})
    assert "**not reproduced: the opposite at decoder 1:16**" in report.section(mixed)


def test_figures_are_drawn_from_what_there_is() -> None:
    some = results({"sr-ste": 0.80}, {})
    left, right = report.figures(some)["sparsity"].axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["dense", "SR-STE"]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["dense"]
