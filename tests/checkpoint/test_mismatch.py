"""A checkpoint of another model, another recipe or another place is refused, in so many words."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune.checkpoint import latest_step, restore, save
from tests.checkpoint import states

FOOT = (
    "It is a checkpoint of another model or optimizer. Build the template as in the run that saved "
    "it, or pass that model's directory."
)
SAVED = {
    "kernel": jnp.ones((4, 8)),
    "mask": jnp.ones((4, 9), bool),
    "key": jax.random.key(0),
    "n": 3,
}


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (
            SAVED | {"kernel": jnp.ones((4, 16))},
            "'kernel': float32[4, 8] in the checkpoint, float32[4, 16] in the template",
        ),
        (
            SAVED | {"kernel": jax.ShapeDtypeStruct((4, 8), jnp.bfloat16)},
            "'kernel': float32[4, 8] in the checkpoint, bfloat16[4, 8] in the template",
        ),
        (
            SAVED | {"mask": jnp.ones((4, 10), bool)},
            "'mask': bool[4, 9] in the checkpoint, bool[4, 10] in the template",
        ),
        (
            SAVED | {"key": jax.random.key(0, impl="rbg")},
            "'key': key<fry>[] in the checkpoint, key<rbg>[] in the template",
        ),
        (SAVED | {"n": 3.0}, "'n': int[] in the checkpoint, float[] in the template"),
        (SAVED | {"n": jnp.ones(1)}, "'n': int[] in the checkpoint, float32[1] in the template"),
        (
            SAVED | {"extra": {"bias": jnp.ones(3)}},
            "'extra/bias': float32[3] in the template, nothing in the checkpoint",
        ),
        (
            {name: leaf for name, leaf in SAVED.items() if name != "kernel"},
            "'kernel': float32[4, 8] in the checkpoint, nothing in the template",
        ),
    ],
)
def test_a_leaf_that_differs_is_named(tmp_path: Path, template: Any, line: str):
    save(tmp_path, 5, SAVED)
    with pytest.raises(ValueError) as error:
        restore(tmp_path, template)
    assert str(error.value) == (
        f"step 5 in {str(tmp_path)!r} does not match the template:\n  {line}\n{FOOT}"
    )


def test_a_long_list_is_cut(tmp_path: Path):
    save(tmp_path, 0, {"layer": [np.ones(2)] * 12})
    with pytest.raises(ValueError) as error:
        restore(tmp_path, {"layer": [np.ones(3)] * 12})
    lines = [
        f"'layer/{i}': float64[2] in the checkpoint, float64[3] in the template" for i in range(8)
    ]
    assert str(error.value).split("\n  ")[1:] == [*lines, f"and 4 more\n{FOOT}"]


def one_of(n: int, packed: bool = False) -> Any:
    tx = jaxprune.gradual(optax.sgd(0.1), 1 - n / 4, pattern=jaxprune.NM(n, 4), packed=packed)
    return {
        "params": {"kernel": jnp.ones((8, 4))},
        "opt_state": tx.init({"kernel": jnp.ones((8, 4))}),
    }


def test_another_recipe_is_refused(tmp_path: Path):
    saved, other = one_of(2), one_of(1)
    save(tmp_path, 5, saved)
    with pytest.raises(ValueError) as error:
        restore(tmp_path, other)
    old, new = (f"{int(state['opt_state'].fingerprint):#010x}" for state in (saved, other))
    assert str(error.value) == (
        f"step 5 in {str(tmp_path)!r} was saved with another recipe of sparse training: the recipe "
        f"at 'opt_state/fingerprint' is {old} in the checkpoint and {new} in the template. Give "
        "the transform the sparsity, schedule, pattern, score and allocation of that run. To go on "
        "with another recipe, restore with the old one and pass the parameters to the new "
        "transform's init."
    )
    assert restore(tmp_path, one_of(2, packed=True))[0] == 5  # the same recipe, stored otherwise


def test_another_model_and_recipe_are_both_named(tmp_path: Path):
    save(tmp_path, 5, one_of(2))
    other = one_of(1)
    other["params"]["kernel"] = jnp.ones((8, 5))
    with pytest.raises(ValueError) as error:
        restore(tmp_path, other)
    lines = str(error.value).split("\n  ")
    assert (
        lines[1]
        == "'params/kernel': float32[8, 4] in the checkpoint, float32[8, 5] in the template"
    )
    assert lines[2].startswith("the recipe at 'opt_state/fingerprint' is 0x")
    assert lines[2].endswith(FOOT)


def test_the_recipe_is_found_in_seeds_and_nested_states(tmp_path: Path):
    def make(n: int) -> Any:
        return {"opt_state": jax.tree.map(lambda x: jnp.stack([x, x]), one_of(n))}

    save(tmp_path, 0, make(2))
    with pytest.raises(ValueError, match=r"the recipe at 'opt_state/opt_state/fingerprint' is \["):
        restore(tmp_path, make(1))
    states.assert_equal(restore(tmp_path, make(2))[1], make(2))


def test_there_is_no_directory(tmp_path: Path):
    absent = tmp_path / "absent"
    with pytest.raises(FileNotFoundError) as error:
        restore(absent, SAVED)
    assert str(error.value) == (
        f"there is no directory {str(absent)!r}. Pass the directory that was given to "
        "jaxprune.checkpoint.save."
    )
    assert not absent.exists()


def test_there_is_no_checkpoint(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as error:
        restore(tmp_path, SAVED)
    assert str(error.value) == (
        f"there is no checkpoint in {str(tmp_path)!r}. Save one with jaxprune.checkpoint.save, or "
        "start anew if jaxprune.checkpoint.latest_step gives None."
    )


def test_there_is_no_such_step(tmp_path: Path):
    for step in (3, 5):
        save(tmp_path, step, {"a": np.ones(2)})
    with pytest.raises(FileNotFoundError) as error:
        restore(tmp_path, {"a": np.ones(2)}, step=4)
    assert str(error.value) == (
        f"there is no step 4 in {str(tmp_path)!r}; its steps are 3, 5. Pass one of them, or "
        "step=None for the newest."
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"step": -1}, "step must be 0 or more, got -1."),
        ({"keep": 0}, "keep must be 1 or more, got 0."),
        (
            {"state": {"params": optax.MaskedNode()}},
            "state has no leaves. Pass {'params': params, 'opt_state': opt_state}.",
        ),
        (
            {"directory": "gs://bucket/run"},
            "directory must be on a local or shared file system, got 'gs://bucket/run'. Mount the "
            "bucket, or copy finished checkpoints there.",
        ),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], text: str):
    good = {"directory": tmp_path, "step": 0, "state": {"a": np.ones(2)}, "keep": 2}
    call = good | arguments
    with pytest.raises(ValueError) as error:
        save(call["directory"], call["step"], call["state"], keep=call["keep"])
    assert str(error.value) == text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["step", "keep"])
def test_counts_are_integers(tmp_path: Path, name: str):
    counts: dict[str, Any] = {"step": 0, "keep": 2} | {name: 1.5}
    with pytest.raises(TypeError) as error:
        save(tmp_path, counts["step"], {"a": np.ones(2)}, keep=counts["keep"])
    assert str(error.value) == f"{name} must be an integer, got 1.5 of type float."


def test_a_url_is_no_directory():
    for call in (latest_step, lambda url: restore(url, SAVED)):
        with pytest.raises(ValueError, match="got 'gs://bucket/run'"):
            call("gs://bucket/run")


def test_a_file_is_no_directory(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("notes")
    with pytest.raises(FileExistsError):
        save(file, 0, {"a": np.ones(2)})
    assert file.read_text() == "notes"
