"""Large products for longer: what is timed, and how it is shown."""

from pathlib import Path

import pytest

from experiments.benchmarks import report, sustained


def test_each_product_is_timed_alone_and_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sustained, "REST", 0.0)
    sustained.main(["--side", "128", "--seconds", "0", "--output", str(tmp_path)])
    (result,) = report.load(tmp_path)
    rows = result["sustained"]["rows"]
    assert [(row["format"], row["product"], row["beside"]) for row in rows] == [
        (format, product, beside)
        for format, sparse in (("2:4", "made dense"), ("128x128", "xla"))
        for product, beside in (
            ("dense", "alone"), (sparse, "alone"), ("dense", "in turns"), (sparse, "in turns")
        )
    ]  # fmt: skip
    assert all(0 < row["fastest"] <= row["later"] for row in rows)
    assert "128 x 128 x 128" in report.page([result])


def test_a_clock_that_falls_is_shown() -> None:
    assert sustained.summary([1.0, 2.0, 3.0, 5.0]) == {"fastest": 1.0, "first": 1.0, "later": 4.0}
    row = {"format": "2:4", "product": "dense", "beside": "alone", "clock": 1320.0, "power": 698.7}
    _, cells = sustained.table([row | {"fastest": 1e-3, "first": 1e-3, "later": 2e-3}])
    assert cells[0][3:] == ["1 ms", "1 ms", "2 ms", "1320 MHz", "699 W"]
