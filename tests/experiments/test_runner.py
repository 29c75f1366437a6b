"""The runner of the experiments: what it runs, what it keeps, and what the page says of it."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from experiments.dst import report as dst_report
from experiments.pai import report as pai_report
from experiments.quickstart import train as quickstart
from experiments.runner import catalogue, claims, cli, data, images, models, page, store, training
from experiments.runner.api import Context, Result, StoppedError, UsageError
from experiments.runner.statistics import difference, sample
from experiments.schedules import report as schedules_report
from experiments.schedules.journey import Geometric, Journey
from tests.experiments import fake_runner as fake

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def three_cells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The fake experiment, and the folder of its results."""
    fake.install(monkeypatch)
    for memory in (fake.ran, fake.changes, fake.values):
        memory.clear()
    return tmp_path / "results"


def run(folder: Path, *options: str) -> int:
    return cli.main(["run", "fake", "--quick", "--results", str(folder), *options])


def test_list_names_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == catalogue.names()
    assert {"dst", "pai", "schedules"} <= set(catalogue.names())


def test_cells_have_names_of_their_own_that_can_be_files() -> None:
    for name in catalogue.names():
        for quick in (True, False):
            cells = catalogue.find(name).cells(quick)
            names = [cell.name for cell in cells]
            assert len(set(names)) == len(names)
            assert all(re.fullmatch(r"[a-z0-9.-]+", cell) for cell in names)
            json.dumps([dict(cell.settings) for cell in cells], allow_nan=False)


def test_a_cell_is_kept_and_not_run_again(three_cells: Path) -> None:
    assert run(three_cells, "--seeds", "2") == 0
    assert sorted(fake.ran) == list(fake.NAMES)
    kept = json.loads((three_cells / "fake" / "b-90.json").read_text())
    assert kept["values"] == {"accuracy": [0.5, 0.6]}
    assert kept["settings"]["seeds"] == [0, 1]
    assert kept["command"] == "python -m experiments run fake --seeds 2 --quick"
    assert run(three_cells, "--seeds", "2") == 0
    assert len(fake.ran) == 3


def test_only_some_cells(three_cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(three_cells, "--only", "^b|^c") == 0
    assert sorted(fake.ran) == ["b-90", "c-97.5"]
    assert run(three_cells, "--only", "zebra") == 2
    expected = "error: --only 'zebra' matches no cell; there are a, b-90, c-97.5.\n"
    assert capsys.readouterr().out.endswith(expected)


def test_a_failure_is_told_and_the_others_are_kept(
    three_cells: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.values["b-90"] = RuntimeError("no memory left")
    assert run(three_cells) == 1
    assert "RuntimeError: no memory left" in capsys.readouterr().out
    assert [path.stem for path in sorted((three_cells / "fake").iterdir())] == ["a", "c-97.5"]
    del fake.values["b-90"]
    fake.ran.clear()
    assert run(three_cells) == 0
    assert fake.ran == ["b-90"]


def test_a_number_that_is_not_finite_is_no_result(three_cells: Path) -> None:
    fake.values["a"] = {"accuracy": [float("nan")]}
    assert run(three_cells, "--only", "^a$") == 1
    assert not (three_cells / "fake").exists()


def test_a_killed_run_loses_only_the_cell_in_flight(three_cells: Path) -> None:
    options = ["run", "fake", "--quick", "--results", str(three_cells)]
    command = [sys.executable, "-m", "tests.experiments.fake_runner", *options]
    environment = os.environ | {fake.KILLED_AT: "b-90", "JAX_PLATFORMS": "cpu"}
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr.decode()
    assert [path.name for path in (three_cells / "fake").iterdir()] == ["a.json"]
    assert run(three_cells) == 0
    assert sorted(fake.ran) == ["b-90", "c-97.5"]


def test_results_of_other_settings_are_refused(
    three_cells: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(three_cells, "--only", "^a$") == 0
    fake.changes["epochs"] = 5
    assert run(three_cells) == 2
    path = three_cells / "fake" / "a.json"
    assert capsys.readouterr().out.endswith(
        f"error: {str(path)!r} is the result of other settings: epochs 3 is now 5. Run with the "
        "same ones, write elsewhere with --results, or replace it with --force.\n"
    )
    assert fake.ran == ["a"]  # nothing was run before the refusal
    assert run(three_cells, "--force") == 0
    assert json.loads(path.read_text())["settings"]["epochs"] == 5


def test_other_seeds_and_other_data_are_other_settings(three_cells: Path) -> None:
    assert run(three_cells, "--seeds", "2") == 0
    assert run(three_cells, "--seeds", "3") == 2
    (cell, *_) = fake.experiment().cells(True)
    digests = data.digests({"numbers": {"x": np.arange(4.0) + 1}})
    with pytest.raises(store.SettingsMismatchError, match="data"):
        store.is_done(three_cells / "fake" / "a.json", store.decisive(cell, (0, 1), digests))


def test_data_travel_in_one_file(three_cells: Path, tmp_path: Path) -> None:
    file = tmp_path / "sub" / "all.npz"
    assert cli.main(["prepare", str(file)]) == 0
    sources = fake.experiment().sources
    direct, stored = data.gather(sources, None), data.gather(sources, file)
    np.testing.assert_array_equal(stored["numbers"]["x"], np.arange(4.0))
    assert data.digests(direct) == data.digests(stored)
    with pytest.raises(UsageError) as raised:
        data.gather({"text": dict}, file)
    assert str(raised.value) == (
        f"--data {str(file)!r} has no arrays of text. Write the file anew with "
        f"`python -m experiments prepare {file}`."
    )


def test_an_unknown_experiment_is_named() -> None:
    with pytest.raises(UsageError) as raised:
        catalogue.find("zebra")
    known = ", ".join(catalogue.names())
    assert str(raised.value) == f"no experiment is named 'zebra'; there are {known}."


def test_shared_values_are_made_once() -> None:
    made: list[int] = []
    context = Context({}, (0,))
    barrier = threading.Barrier(4)

    def ask() -> None:
        barrier.wait()
        context.for_cell(lambda *_: None).once("key", lambda: made.append(1) or made)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_a_stopped_cell_leaves_through_its_next_report() -> None:
    def tell(done: int, total: int, note: str) -> None:
        raise StoppedError("stopped")

    with pytest.raises(StoppedError):
        Context({}, (0,)).for_cell(tell).tell(1, 2)


def test_the_page_is_what_the_files_say() -> None:
    found = page.load([catalogue.find(name) for name in catalogue.names()], store.RESULTS)
    text = page.text(found)
    assert text == page.PAGE.read_text(), "run python -m experiments report"
    for figure in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (page.PAGE.parent / figure).exists(), "run python -m experiments report"


def test_the_page_of_stored_results(three_cells: Path, tmp_path: Path) -> None:
    assert run(three_cells, "--seeds", "2", "--only", "^a|^b") == 0
    target = tmp_path / "page.md"
    assert cli.main(["report", "--results", str(three_cells), "--page", str(target)]) == 0
    text = target.read_text()
    assert "## fake\n\nThree cells.\n" in text
    command = "`python -m experiments run fake --seeds 2 --quick`"
    assert f"{command}: 2 cells, 2 seeds each, on CPU (jax {jax.__version__})." in text
    assert "| b-90 | 55.00 ± 7.07 |" in text
    assert "| All is well (nobody) | it is | **reproduced** |" in text


def test_one_mean_is_above_another_beyond_two_standard_errors() -> None:
    clear = difference([0.50, 0.52], [0.60, 0.62])  # error 0.0141
    assert clear.above
    assert clear.shown() == "+10.00 ± 1.41"
    assert difference([0.60, 0.62], [0.50, 0.52]).below
    assert difference([0.50, 0.52], [0.51, 0.55]).within
    assert difference([0.5], [0.9]).within  # one seed tells nothing
    assert sample([0.5]).shown() == "50.00"


def test_verdicts() -> None:
    up, down = difference([0.1, 0.11], [0.5, 0.51]), difference([0.5, 0.51], [0.1, 0.11])
    same = difference([0.1, 0.3], [0.1, 0.31])
    assert claims.is_better({"x": up, "y": up}) == "reproduced"
    assert claims.is_better({"x": up, "y": same}) == "reproduced at x; else noise"
    assert claims.is_better({"x": up, "y": down}) == "not reproduced: the opposite at y"
    assert claims.is_better({"x": same}) == "not reproduced: noise"
    assert claims.is_no_worse({"x": same, "y": up}) == "reproduced"
    assert claims.is_no_worse({"x": same, "y": down}) == "not reproduced at y"
    assert claims.is_better({}) == claims.is_no_worse({}) == "not run"


def result(name: str, settings: dict[str, Any], **values: Any) -> Result:
    return Result(name, settings, (0, 1, 2), "a device", "1", "run me", values)


def about(mean: float) -> list[float]:
    return [mean - 0.001, mean, mean + 0.001]


def of_dst(name: str, accuracy: float, train_loss: float = 0.1) -> Result:
    history = {"accuracy": [[0.1, accuracy]] * 3}
    found = {"accuracy": about(accuracy), "train_loss": about(train_loss), "history": history}
    return result(name, {"sparsity": 0.98}, **found)


def test_the_section_on_dynamic_training_states_what_fails() -> None:
    means = {"static-98": 0.8, "set-98": 0.9, "rigl-98": 0.85, "rigl-mean-98": 0.87, "dense": 0.95}
    results = {name: of_dst(name, mean) for name, mean in means.items()}
    text = dst_report.section(results)
    assert "| static | - | - | 80.00 ± 0.10 |" in text
    assert re.search(r"SET is better than static.* 98%: \+10.00 ± 0.08 \| \*\*reproduced\*\*", text)
    assert re.search(r"RigL is better than SET.*\*\*not reproduced: the opposite at 98%", text)
    assert re.search(r"GraNet is no worse than RigL.*\*\*not run\*\*", text)
    assert "**`mean_of_live` is better at 1 of 1 sparsities, nowhere worse**" in text
    assert list(dst_report.figures(results)) == ["accuracy"]


def of_pai(method: str, sparsity: float, accuracy: float, lost: int) -> Result:
    settings = {"method": method, "sparsity": sparsity, "widths": [8], "epochs": 1, "rounds": 2}
    settings |= {"score_batches": 1, "score_batch_size": 2}
    return result(method, settings, accuracy=about(accuracy), layers_lost=[lost] * 3)


def test_the_section_on_pruning_before_training_follows_the_lost_layers() -> None:
    results = {
        "snip": of_pai("snip", 0.99, 0.1, lost=2),
        "synflow": of_pai("synflow", 0.99, 0.6, lost=0),
    }
    text = pai_report.section(results)
    assert "| 99% | - | 10.00 ± 0.10 (2.0 lost) | - | 60.00 ± 0.10 |" in text
    assert re.search(r"avoids the layer collapse.*SNIP loses layers at 99%.*\*\*reproduced", text)
    assert "99%: +50.00 ± 0.08 | **reproduced**" in text
    results["synflow"] = of_pai("synflow", 0.99, 0.1, lost=1)
    assert "**not reproduced: SynFlow loses layers too**" in pai_report.section(results)
    assert list(pai_report.figures(results)) == ["accuracy"]


def of_schedules(begin: float, end: float, accuracy: float) -> Result:
    settings = {"begin": begin, "end": end, "sparsity": 0.9, "compute": 9, "batch_size": 2}
    return result(f"{100 * begin:g}-{100 * end:g}", settings, accuracy=about(accuracy), steps=1234)


@pytest.mark.parametrize(("best", "verdict"), [(0.8005, "reproduced"), (0.9, "not reproduced")])
def test_the_section_on_schedules_compares_with_the_best(best: float, verdict: str) -> None:
    made = [of_schedules(0.25, 0.75, 0.8), of_schedules(0.0, 0.5, best)]
    results = {each.name: each for each in made}
    text = schedules_report.section(results)
    assert "| from 25% |  | 80.00 ± 0.10 (1,234) |" in text
    assert re.search(rf"best is 0% to 50%, ahead by .* 2 of 2 \| \*\*{verdict}\*\*", text)
    assert list(schedules_report.figures(results)) == ["grid"]


def test_a_journey_spends_its_compute_where_it_says() -> None:
    journey = Journey(begin=0.25, end=0.75, sparsity=0.9, compute=1000, every=10)
    schedule = journey.schedule
    assert journey.spent(schedule.begin) == 250
    assert journey.spent(schedule.end) == pytest.approx(750, abs=10)  # one update is 10 steps
    assert journey.spent(journey.steps) == pytest.approx(1000, abs=0.1)


def test_a_geometric_schedule_prunes_the_same_share_each_time() -> None:
    schedule = Geometric(final=0.75, begin=4, every=3, count=2)
    assert [schedule.at(step) for step in (3, 4, 6, 7, 99)] == [0.0, 0.5, 0.5, 0.75, 0.75]
    assert schedule.end == 7
    traced = jax.jit(schedule)(jnp.array([3, 4, 6, 7, 99]))
    np.testing.assert_allclose(traced, [0.0, 0.5, 0.5, 0.75, 0.75], rtol=1e-6)


@pytest.mark.standard_promotion
def test_the_network_is_that_of_the_quickstart(rng: np.random.Generator) -> None:
    pixels = jnp.asarray(rng.integers(0, 256, (2, 12, 12, 1), np.uint8))
    ours, theirs = models.CNN(10, 70.0, 80.0), quickstart.CNN(10, 70.0, 80.0)
    shapes = jax.eval_shape(theirs.init, jax.random.key(0), pixels)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)
    np.testing.assert_allclose(
        jax.jit(ours.apply)(params, pixels),
        jax.jit(theirs.apply)(params, pixels),
        rtol=1e-4,
        atol=1e-2,
    )


def _line() -> training.Trainer:
    """Fit a line with RigL."""

    def loss(params: Any, x: jax.Array, batch: jax.Array) -> jax.Array:
        return jnp.mean((x[batch] @ (params["kernel"] - 1.0)) ** 2)

    def init(key: jax.Array) -> Any:
        return {"kernel": jax.random.normal(key, (8, 2))}

    task = training.Task(init, loss, lambda params, x: {"loss": loss(params, x, jnp.arange(6))})
    return training.Trainer(task, jaxprune.rigl(optax.adam(0.1), 0.5, every=2, end=5))


def _fit(context: Context, trainer: training.Trainer) -> training.Trained:
    """Train from masks of each seed."""
    length = training.Length(steps_per_chunk=3, chunks=2, batch_size=2, examples=6)
    drawn = [np.random.default_rng(seed).permutation(16) < 8 for seed in context.seeds]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8)), jnp.float32)
    masks = {"kernel": jnp.asarray(np.stack(drawn).reshape(-1, 8, 2))}
    return training.train(context, trainer, x, length, masks)


@pytest.mark.standard_promotion
def test_seeds_train_side_by_side_and_apart() -> None:
    told: list[tuple[int, int]] = []
    context = Context({}, (0, 1)).for_cell(lambda done, total, note: told.append((done, total)))
    trainer = _line()
    both, turned = training.checked(_fit(context, trainer)), _fit(Context({}, (1, 0)), trainer)
    assert told == [(1, 2), (2, 2)]
    kernel = both.params["kernel"]
    np.testing.assert_array_equal(kernel, turned.params["kernel"][::-1])
    masks = jaxprune.get_masks(both.opt_state)
    assert training.live_weights(masks) == {"kernel": [8, 8]}
    assert training.sparsity_of(masks) == [0.5, 0.5]
    assert not np.array_equal(*masks["kernel"])
    assert both.last("loss")[0] == both.history["loss"][0][1] < both.history["loss"][0][0]
    broken = both._replace(params={"kernel": jnp.ones_like(kernel)})
    with pytest.raises(ValueError, match="pruned weights are not zero"):
        training.checked(broken)


def test_each_pass_takes_every_example_once() -> None:
    length = training.Length(steps_per_chunk=3, chunks=2, batch_size=2, examples=6)
    order = training._order(length, 0)
    assert order.shape == (6, 2)
    assert sorted(order[:3].ravel()) == sorted(order[3:].ravel()) == list(range(6))
    assert not np.array_equal(order[:3], order[3:])
    assert not np.array_equal(order, training._order(length, 1))


@pytest.mark.slow  # each compiles a program of its own
@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("dst", "static-95"),
        ("dst", "granet-95"),
        ("pai", "grasp-98"),
        ("pai", "synflow-98"),
        ("schedules", "25-75"),
    ],
)
def test_a_real_cell_runs(name: str, cell: str, tmp_path: Path, rng: np.random.Generator) -> None:
    file, folder = tmp_path / "noise.npz", tmp_path / "results"
    arrays = {}
    for part, count in (("train", 256), ("test", 64)):
        pixels = rng.integers(0, 256, (count, 28, 28, 1), np.uint8)
        arrays[f"{images.NAME}/{part}_images"] = pixels
        arrays[f"{images.NAME}/{part}_labels"] = rng.integers(0, 10, count).astype(np.int32)
    np.savez(file, **arrays)
    command = [sys.executable, "-m", "experiments", "run", name, "--quick", "--only", f"^{cell}$"]
    options = ["--data", str(file), "--results", str(folder)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    ran = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stdout.decode() + ran.stderr.decode()
    ((_, kept),) = store.load(folder / name).items()
    assert len(kept.values["accuracy"]) == 2
    wanted = kept.settings["sparsity"]
    assert kept.values["sparsity"] == pytest.approx([wanted] * 2, abs=1e-3)
