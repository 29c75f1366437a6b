"""Several processes train, save and restore as one does, and what happens when some die."""

import functools
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import checkpoint
from jaxprune._core import paths
from tests.processes import launch, training
from tests.processes.worker import FINISHED

KILLED = -signal.SIGKILL
END = 9


@functools.cache
def alone(methods: Sequence[str], steps: int) -> dict[str, np.ndarray]:
    """The state after some steps of one process with one device."""
    state = training.start(None, methods)
    for _ in range(steps):
        state = training.step(state)
    return leaves(state)


def leaves(state: Any) -> dict[str, np.ndarray]:
    """The arrays of a state by path, and its masks unpacked."""
    masks = {
        f"masks/{name}": jaxprune.get_masks(part)
        for name, part in state.items()
        if isinstance(part, dict)
    }
    arrays = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        {**state, **masks},
    )
    return {path: np.asarray(leaf) for path, leaf in paths.flatten(arrays).items()}


def saved(folder: Path, step: int, methods: Sequence[str] = training.METHODS) -> Any:
    """The arrays of a checkpoint."""
    got, state = checkpoint.restore(folder, training.start(None, methods), step=step)
    assert got == step
    return leaves(state)


def assert_equal(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """Assert that all arrays agree bit for bit."""
    assert got.keys() == want.keys()
    different = [path for path, leaf in got.items() if leaf.tobytes() != want[path].tobytes()]
    assert not different


def assert_finished(ends: list[launch.End]) -> None:
    assert [end.code for end in ends] == [0] * len(ends), ends[0].text[-2000:]
    assert all(FINISHED in end.text for end in ends)


def test_two_processes_train_as_one_and_one_goes_on_when_they_are_killed(tmp_path: Path):
    run, methods = tmp_path / "run", training.METHODS
    first, second = launch.run(
        tmp_path,
        "train",
        count=2,
        mesh=[2, 2],
        folder=str(run),
        methods=methods,
        until=END,
        mortal=1,
        dies_at=7,
        dies="in a step",
    )
    assert second.code == KILLED
    assert FINISHED not in first.text
    assert checkpoint.latest_step(run) == 6
    assert_equal(saved(run, 3), alone(methods, 3))
    assert_equal(saved(run, 6), alone(methods, 6))
    assert_equal(leaves(training.train(run, END)), alone(methods, END))


def test_two_processes_go_on_where_one_stopped_and_a_torn_save_is_no_step(tmp_path: Path):
    run, methods = tmp_path / "run", ("gradual",)
    training.train(run, 4, methods=methods)
    ends = launch.run(
        tmp_path,
        "train",
        count=2,
        mesh=[1, 4],
        folder=str(run),
        methods=methods,
        until=END,
        mortal=1,
        dies_at=8,
        dies="before the digests",
    )
    assert ends[1].code == KILLED
    assert (run / f".{END}.partial").is_dir()
    assert checkpoint.latest_step(run) == 6
    assert_equal(saved(run, 6, methods), alone(methods, 6))
    assert_equal(leaves(training.train(run, END, methods=methods)), alone(methods, END))
    assert not (run / f".{END}.partial").exists()


def test_whatever_lies_in_several_processes_comes_back(tmp_path: Path):
    run = str(tmp_path / "run")
    assert_finished(launch.run(tmp_path, "store", count=2, devices=2, folder=run))


def test_what_one_process_raises_all_raise_and_none_waits_for_ever(tmp_path: Path):
    first, _ = launch.run(tmp_path, "disagree", count=2, devices=1, folder=str(tmp_path / "run"))
    assert first.code == 0, first.text
    told = [line for line in first.text.splitlines() if line.startswith(("Type", "Runtime"))]
    assert told[0].startswith("TypeError: a checkpoint holds arrays and numbers, but 'w'")
    assert told[0].endswith("This was raised in process 1.")
    assert told[1].startswith(
        "RuntimeError: this process is in jaxprune.checkpoint.save of step 1, and process 1 in "
        "jaxprune.checkpoint.save of step 2."
    )
    assert told[2].startswith(
        "RuntimeError: process 0 of 2 waited 1 seconds in jaxprune.checkpoint.save of step 1, and "
        "not all others came"
    )


def test_a_process_that_never_joins_is_not_waited_for_for_ever(tmp_path: Path):
    began = time.monotonic()
    (end,) = launch.run(tmp_path, "train", count=2, present=1, patience=2)
    assert time.monotonic() - began < 60
    assert end.code not in (0, None)  # JAX ends the process itself
    assert "DEADLINE_EXCEEDED" in end.text


SLOW = pytest.mark.slow(reason="starts up to eight processes")


@SLOW
@pytest.mark.parametrize("axes", ["Explicit", "Auto"])
@pytest.mark.parametrize(
    ("before", "after"),
    [((2, 2, [2, 2]), (4, 1, [4, 1])), ((4, 2, [4, 2]), (2, 1, [1, 2])), ((4, 1, [1, 4]), None)],
)
def test_another_number_of_processes_on_another_mesh_goes_on(
    tmp_path: Path, axes: str, before: Any, after: Any
):
    run, methods = tmp_path / "run", training.METHODS
    settings: Any = {"folder": str(run), "methods": methods, "axes": axes, "seconds": 300.0}
    for until, some in ((6, before), (END, after)):
        if some is not None:
            count, devices, mesh = some
            ends = launch.run(
                tmp_path, "train", count=count, devices=devices, mesh=mesh, until=until, **settings
            )
            assert_finished(ends)
            assert_equal(saved(run, until), alone(methods, until))
    if after is None:
        for mesh in (jax.make_mesh((4, 2), ("data", "model")), None):
            assert_equal(leaves(training.train(run, END, mesh)), alone(methods, END))
            shutil.rmtree(run / str(END))


@SLOW
@pytest.mark.parametrize("mortal", [0, 1])
@pytest.mark.parametrize(
    "dies",
    [
        "in a step",
        "before the arrays",
        "before a rename",
        "before the digests",
        "before the manifest",
    ],
)
def test_wherever_one_dies_the_others_end_and_all_start_again(
    tmp_path: Path, dies: str, mortal: int
):
    run, methods = tmp_path / "run", ("gradual",)
    settings: Any = {"folder": str(run), "methods": methods, "until": END, "seconds": 300.0}
    settings |= {"count": 2, "mesh": [2, 2]}
    ends = launch.run(
        tmp_path, "train", **settings, mortal=mortal, dies_at=5, dies=dies, grace=90, heartbeat=10
    )
    if mortal == 1 and dies in ("before a rename", "before the manifest"):  # the first does these
        assert_finished(ends)
    else:
        assert ends[mortal].code == KILLED
        assert ends[1 - mortal].code not in (0, None)  # by itself
        assert checkpoint.latest_step(run) == 3
        assert_finished(launch.run(tmp_path, "train", **settings))
    assert_equal(saved(run, END, methods), alone(methods, END))


@SLOW
def test_with_sums_over_processes_a_resumed_run_is_the_whole_run_bit_for_bit(tmp_path: Path):
    settings: Any = {"count": 2, "mesh": [2, 2], "axes": "Auto", "methods": training.LEARNED}
    whole, stopped = (settings | {"folder": str(tmp_path / name)} for name in ("whole", "stopped"))
    assert_finished(launch.run(tmp_path, "train", **whole, until=END))
    launch.run(tmp_path, "train", **stopped, until=END, mortal=0, dies_at=5, dies="in a step")
    assert checkpoint.latest_step(tmp_path / "stopped") == 3
    assert_finished(launch.run(tmp_path, "train", **stopped, until=END))
    end = saved(tmp_path / "stopped", END, training.LEARNED)
    assert_equal(end, saved(tmp_path / "whole", END, training.LEARNED))
    one = alone(training.LEARNED, END)
    for path, leaf in end.items():
        np.testing.assert_allclose(leaf, one[path], rtol=1e-5, atol=1e-6, err_msg=path)


@SLOW
def test_processes_that_are_killed_at_any_moment_go_on(tmp_path: Path):
    run, methods, chance = tmp_path / "run", ("gradual",), random.Random(0)

    def newest() -> int:
        return checkpoint.latest_step(run) or 0

    for _ in range(4):
        before = newest()
        ends = launch.run(
            tmp_path,
            "train",
            count=2,
            mesh=[2, 2],
            folder=str(run),
            methods=methods,
            until=10_000,
            stop=lambda: newest() > before and chance.random() < 0.3,
        )
        assert [end.code for end in ends] == [None, None]
        assert newest() > before
        assert_equal(saved(run, newest(), methods), alone(methods, newest()))
