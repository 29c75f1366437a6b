"""What is measured of a product, what counts as right, and what goes into the table."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import kernels
from jaxprune.kernels import _stopwatch, _trials, autotune, bench, dispatch, reference, tuning
from tests.kernels import fake_block, fake_nm

QUICK = autotune.Effort(sample=1e-4, seconds=0.0, rounds=(1, 1))
NM_KERNEL = kernels.Candidate("mosaic_gpu", "cpu", "nm", "tests.kernels.fake_nm")
BLOCK_KERNEL = kernels.Candidate("mosaic_gpu", "cpu", "block", "tests.kernels.fake_block")


def one(*cases: autotune.Case, **options: Any) -> autotune.Measured:
    (found,) = autotune.measure(cases, effort=QUICK, **options)
    return found


def right(timing: autotune.Timing) -> bool:
    return timing.failure is None and timing.error is not None and timing.error < 1e-5


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "CANDIDATES", (NM_KERNEL, BLOCK_KERNEL))
    several = lambda *_: [fake_nm.Config(width) for width in (1, 2, 3)]  # noqa: E731
    monkeypatch.setattr(fake_nm, "configs", several, raising=False)
    monkeypatch.setattr(fake_block, "configs", lambda *_: [fake_block.Config()], raising=False)


@pytest.mark.usefixtures("plugged")
def test_every_setting_of_a_kernel_is_measured_and_the_fastest_is_the_entry(
    monkeypatch: pytest.MonkeyPatch,
):
    times = iter([8.0, 4.0, 3.0, 2.0, 5.0])
    monkeypatch.setattr(
        "jaxprune.kernels._plan.medians", lambda runs, _: {run: next(times) for run in runs}
    )
    case = autotune.case("2:4", 4, 16, 6, dtype="float32")
    found = one(case)
    tried = [(t.implementation, t.config and t.config["width"]) for t in found.timings]
    assert tried == [("dense", None), ("fake_nm", None), ("fake_nm", 2), ("fake_nm", 3)]
    assert all(map(right, found.timings))
    assert found.entry() == tuning.Entry(case.product, "fake_nm", 4.0, {"width": 2})
    assert found.bytes == 16 // 2 * 6 * 4 + 6 * 2 + (4 * 16 + 4 * 6) * 4
    assert found.flops == 4 * 16 * 6


@pytest.mark.usefixtures("plugged")
def test_the_number_of_settings_and_the_implementations_can_be_limited():
    case = autotune.case("2:4", 4, 16, 6, dtype="float32")
    found = one(case, configs=2, only=["fake_nm"])
    assert [t.config for t in found.timings] == [None, {"width": 2}]


@pytest.mark.usefixtures("plugged")
def test_a_wrong_result_and_one_that_fails_do_not_count(monkeypatch: pytest.MonkeyPatch):
    multiply = fake_nm.matmul

    def matmul(*args: Any, config: Any = None, **more: Any) -> jax.Array:
        if config == fake_nm.Config(3):
            raise ValueError("too much\nshared memory")
        y = multiply(*args, **more)
        return y if config is None else y.at[0, 0].add(1.0)

    monkeypatch.setattr(fake_nm, "matmul", matmul)
    found = one(autotune.case("2:4", 4, 16, 6, dtype="float32"), only=["fake_nm"])
    good, wrong, broken = found.timings
    assert found.best == good and good.failure is None
    assert wrong.failure is not None and wrong.failure.startswith("wrong: the relative error is")
    assert broken.failure == "ValueError: too much"
    assert broken.seconds is None


@pytest.mark.usefixtures("plugged")
def test_a_result_that_changes_from_run_to_run_does_not_count(monkeypatch: pytest.MonkeyPatch):
    multiply, calls = fake_nm.matmul, iter(range(1000))

    def raced(y: np.ndarray) -> np.ndarray:
        return y + np.float32(1e-5 * next(calls))  # too little to be wrong

    def matmul(*args: Any, **more: Any) -> jax.Array:
        y = multiply(*args, **more)
        return jax.pure_callback(raced, y, y)

    monkeypatch.setattr(fake_nm, "matmul", matmul)
    found = one(autotune.case("2:4", 4, 16, 6, dtype="float32"), only=["fake_nm"], configs=1)
    (timing,) = found.timings
    assert found.best is None
    assert timing.failure is not None and timing.failure.startswith("not the same in every run")


@pytest.mark.usefixtures("plugged")
def test_an_output_that_is_not_a_number_is_wrong(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        reference, "block_forward", lambda x, w: jnp.full((len(x), w.shape[1]), jnp.nan, x.dtype)
    )
    found = one(autotune.case("4x2", 3, 8, 6, density=0.5, dtype="float32"), only=["xla"])
    assert found.best is None and found.entry() is None
    assert found.timings[0].failure == "wrong: the relative error is nan"


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize("direction", bench.GRADIENTS)
def test_blocks_are_held_to_the_dense_product_in_all_directions(direction: Any):
    case = autotune.case("4x2", 3, 8, 6, density=0.3, dtype="float32", direction=direction)
    assert case.product.density == 2 / 6
    found = one(case)
    names = [t.implementation for t in found.timings]
    made_dense = [] if direction == "weight_gradient" else ["dense"]
    assert names == [*made_dense, "xla", "fake_block"]
    assert all(map(right, found.timings))
    assert (found.entry() is None) == (direction != "forward")


@pytest.mark.usefixtures("plugged")
def test_weights_are_cold_where_reading_them_is_what_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jaxprune.kernels._plan._COLD", {"cpu": 1000})
    drawn: list[Any] = []
    draw = _trials.weight

    def weight(product: Any, form: str, key: Any) -> Any:
        drawn.append(form)
        return draw(product, form, key)

    monkeypatch.setattr(_trials, "weight", weight)
    plans = [
        autotune.Plan(
            autotune.case("2:4", rows, 16, 6, dtype="float32").product, "forward", 1, None
        )
        for rows in (4, 8, 512)
    ]
    assert plans[0].stored == 204
    assert [plan.copies for plan in plans] == [5, 5, 1]
    assert plans[0].calls == 5
    monkeypatch.setattr("jaxprune.kernels._plan.medians", lambda runs, _: dict.fromkeys(runs, 10.0))
    found = one(autotune.case("2:4", 4, 16, 6, dtype="float32"))
    assert all(map(right, found.timings))
    assert (found.copies, found.calls) == (5, 5)
    assert {found.dense.seconds, *(t.seconds for t in found.timings)} == {10.0 / 5}


def test_a_weight_is_the_same_in_every_form_and_of_its_density():
    key = jax.random.key(0)
    for format, density in (("2:4", None), ("4x2", 0.5), ("bitmap", 0.25)):
        product = autotune.case(format, 1, 16, 8, density=density, dtype="float32").product
        draw = jax.jit(_trials.weight, static_argnums=(0, 1))
        array, packed = (draw(product, form, key) for form in ("array", "plain"))
        np.testing.assert_allclose(packed.todense(), array, rtol=1e-6)  # two programs
        assert (array != 0).mean() == product.density
        assert tuning.product_of(1, packed, product.device) == product


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("2:4", 1, 10, 8), "k a multiple of 4"),
        (("4x2", 1, 8, 8), "density of '4x2' must be above 0 and at most 1, got None"),
        (("24", 1, 8, 8), "format must be 'n:m'"),
    ],
)
def test_a_product_that_cannot_be_is_refused(arguments: Any, words: str):
    with pytest.raises(ValueError) as error:
        autotune.case(*arguments)
    assert words in str(error.value)
    with pytest.raises(ValueError, match="gradients are measured for blocks"):
        autotune.case("2:4", 1, 8, 8, direction="input_gradient")


def test_samples_interleave_and_quick_runs_are_repeated(monkeypatch: pytest.MonkeyPatch):
    clock, calls = [0.0], []

    def run(name: str, seconds: float) -> None:
        calls.append(name)
        clock[0] += seconds

    monkeypatch.setattr(_stopwatch.time, "perf_counter", lambda: clock[0])
    runs = {"a": lambda: run("a", 1.0), "b": lambda: run("b", 4.0)}
    effort = autotune.Effort(sample=4.0, seconds=1.0, rounds=(2, 9))
    assert _stopwatch.medians(runs, effort) == {"a": 1.0, "b": 4.0}
    assert "".join(calls[-10:]) == "aaaabaaaab"


def test_a_run_keeps_what_it_has_after_each_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bench, "ceilings", lambda *_: bench.Ceilings(1e9, 1e9))
    cases = [
        autotune.case("2:4", 2, 16, 8, dtype="float32"),
        autotune.case("4x2", 2, 16, 8, density=0.5, dtype="float32"),
    ]
    seen: list[int] = []

    def show(report: dict[str, Any]) -> None:
        assert json.loads((tmp_path / "bench.json").read_text()) == report
        seen.append(len(tuning.load(tmp_path / "tuning.json")))

    old = tuning.Entry(dataclasses.replace(cases[0].product, rows=64), "dense", 1.0)
    tuning.save([old], tmp_path / "tuning.json")
    report = bench.run(cases, tmp_path, effort=QUICK, show=show)
    assert seen == [2, 3]
    first = report["products"][0]
    assert first["dense"]["roofline"] == pytest.approx(7.04e-7 / first["dense"]["seconds"])
    assert first["best"]["roofline"] == pytest.approx(4.64e-7 / first["best"]["seconds"])
    assert report["missed"] == 0
    assert report["ceilings_after"] == {"bytes": 1e9, "flops": 1e9}
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"
    stopped = bench.run(cases, tmp_path, effort=QUICK, limit=0.0, plot=False)
    assert (len(stopped["products"]), stopped["missed"]) == (1, 1)
