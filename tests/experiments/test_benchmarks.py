"""The parts of the benchmarks, and that the page says what the files say."""

import json
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.benchmarks import overhead, report, selection, timing, wrapped
from tests import members


def test_the_page_is_what_the_files_say() -> None:
    assert report.PAGE.read_text() == report.page(report.load()), (
        "run python -m experiments.benchmarks.report"
    )


def test_expected_mask_puts_nan_last_and_ties_in_order() -> None:
    scores = np.array([np.nan, 0.0, 2.0, -0.0, -np.inf, 2.0], np.float32)
    assert selection.expected_mask(scores, 0).sum() == 0
    assert selection.expected_mask(scores, 1).tolist() == [False, False, True, False, False, False]
    assert selection.expected_mask(scores, 3).tolist() == [False, True, True, False, False, True]
    assert selection.expected_mask(scores, 5).tolist() == [False, True, True, True, True, True]


@pytest.mark.parametrize("name", [*selection.TIMED, *selection.HARD])
def test_the_selection_is_right_on_every_input(name: str, rng: np.random.Generator) -> None:
    make = {**selection.TIMED, **selection.HARD}[name]
    scores = make(rng, 500)
    assert scores.dtype == np.float32
    assert scores.shape == (500,)
    assert selection.check(scores, 123) == 0


def test_samples_are_interleaved_and_slow_cases_dropped() -> None:
    order: list[str] = []

    def case(name: str, pause: float) -> timing.Run:
        return lambda: (order.append(name), time.sleep(pause))[1]

    cases = {"a": case("a", 0.0), "b": case("b", 0.0), "slow": case("slow", 0.05)}
    effort = timing.Effort(least=0.0, total=0.0, rounds=(3, 3), limit=0.04)
    times = timing.medians(cases, effort)
    assert times["slow"] is None
    assert order.count("slow") == 1
    assert order[-6:] == ["a", "b"] * 3
    assert all(times[name] is not None for name in "ab")


def test_a_result_joins_the_others_of_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XLA_FLAGS")  # those of the tests
    timing.save("selection", ["--sizes", "1e3", "--output", str(tmp_path)], {"rows": []}, tmp_path)
    path = timing.save("overhead", [], {"rows": [1]}, tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    known = json.loads(path.read_text())
    assert known["overhead"]["rows"] == [1]
    expected = "python -m experiments.benchmarks.selection --sizes 1e3"
    assert known["selection"]["command"] == expected


def _row(**changes: Any) -> dict[str, Any]:
    row = {"n": 10**7, "dtype": "float32", "input": "normal", "k": 1, "kernel": False, "wrong": 0}
    return row | {"read": 0.001, "select": 0.004, "sort": 0.008, "top_k": None} | changes


def test_the_page_names_what_is_slower() -> None:
    section = {
        "device": "a device",
        "jax": "1",
        "python": "3",
        "command": "run me",
        "rows": [_row(), _row(sort=0.002, input="sorted")],
        "hard": {"masks": 8, "wrong": 1},
    }
    text = report.page([{"selection": section}])
    assert "### a device\n\n`run me`" in text
    assert "| 1e7 | float32 | normal | 4 ms | 4 | 2 | - |" in text
    assert "10 masks compared, 1 wrong." in text
    assert "**Slower than `jnp.sort`** for 1e7 float32 (sorted)." in text
    assert "Slower than `lax.top_k`" not in text


def test_the_page_says_which_run_a_row_is_of() -> None:
    times = {"step": 0.02, "optimizer": 0.002, "state_bytes": 0.0, "step_temporary_bytes": 0.0}
    run = {"device": "a device", "jax": "2", "python": "3", "what": "small", "command": "one row"}
    rows = [{"name": name, **times} for name in ("bare", "gradual")]
    before = {**run, "jax": "1", "command": "all rows", "rows": [*rows[:1], {**rows[1], "step": 1}]}
    text = report.page([{"overhead": {**run, "rows": rows, "earlier": [before]}}])
    assert text.count("### a device\n\n`one row` (jax 2, Python 3).") == 1
    first, _, second = text.partition("Of another run: `all rows` (jax 1,")
    assert "| gradual | 20 ms | 1 |" in first
    assert "| gradual | 1 s | 50 |" in second


def test_overhead_is_shown_next_to_the_bare_optimizer() -> None:
    bare = {"name": "bare", "step": 0.02, "optimizer": 0.002, "state_bytes": 0.0}
    bare["step_temporary_bytes"] = 0.0
    wrapped = {**bare, "name": "gradual", "step": 0.021, "state_bytes": 1.0}
    update = {**wrapped, "name": "gradual: update", "step": 0.041}
    _, cells = overhead.table([bare, wrapped, update])
    amortised = "1.06"  # (99 * 21 + 41) / 100 / 20
    assert cells[1] == ["gradual", "21 ms", "1.05", "2 ms", "1", amortised, "+1.000", "+0.00"]
    assert cells[2][5] == "-"


def test_the_overhead_of_every_transform_is_measured() -> None:
    assert {name.split(",")[0] for name in wrapped.TRANSFORMS} == {
        row.name for row in members.TRANSFORMS
    }


@pytest.mark.parametrize("name", ["granet", "acdc"])
def test_masks_change_at_first_only_or_in_all_steps_but_the_rests(name: str) -> None:
    each = wrapped.TRANSFORMS[name]
    assert each.updating is not None
    assert max(_changes(each.quiet)) <= 1
    late = [step for step in _changes(each.updating) if step > 2]
    assert len(late) == 6 // each.cycle * (each.cycle - each.rests)


def _changes(wrap: wrapped.Wrap) -> set[int]:
    """Return the steps of the first nine that change masks."""
    params = {"kernel": jnp.arange(64.0).reshape(8, 8)}
    tx = wrap(optax.sgd(0.1), params)
    state, found = tx.init(params), set()
    for _ in range(9):
        _, state = tx.update(params, state, params)
        found.add(int(state.health.changed))
    return found


def test_an_update_is_timed_without_the_rests_between() -> None:
    def wrap(inner: Any, params: Any) -> Any:
        raise NotImplementedError

    transforms = {"a": wrapped.Wrapped(wrap, wrap, cycle=3, rests=1), "b": wrapped.Wrapped(wrap)}
    times = {"bare": 1.0, "a": 2.0, "a: update": 12.0, "b": 3.0}
    assert overhead.per_step(times, transforms) == {**times, "a: update": 5.0}
    dropped = {**times, "a: update": None}
    assert overhead.per_step(dropped, transforms) == dropped


def test_rows_that_are_not_run_anew_stay_with_their_own_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XLA_FLAGS")

    def run(settings: list[str], *names: str) -> None:
        rows = [{"name": name, "of": settings} for name in ("bare", *names)]
        content = {"rows": rows, "earlier": overhead.earlier(rows, tmp_path)}
        timing.save("overhead", settings, content, tmp_path)

    def kept() -> list[tuple[str, list[str]]]:
        found = []
        for part in timing.runs("overhead", tmp_path):
            settings = part["command"].split()[3:]
            assert all(row["of"] == settings for row in part["rows"])
            found.append((" ".join(settings), [row["name"] for row in part["rows"]]))
        return found

    run(["all"], "a", "a: update", "b")
    run(["first"], "a", "a: update")
    assert kept() == [("first", ["bare", "a", "a: update"]), ("all", ["bare", "b"])]
    run(["second"], "b")
    assert kept() == [("second", ["bare", "b"]), ("first", ["bare", "a", "a: update"])]
    run(["all"], "a", "a: update", "b")
    assert kept() == [("all", ["bare", "a", "a: update", "b"])]


def test_the_command_has_what_changes_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --b=2")
    told = timing.command("overhead", ["--only", "one row", "--output", "/here"])
    assert told == (
        "XLA_FLAGS='--a=1 --b=2' python -m experiments.benchmarks.overhead --only 'one row'"
    )
    monkeypatch.delenv("XLA_FLAGS")
    assert timing.command("sharded", []) == "python -m experiments.benchmarks.sharded"
