"""Pictures: what they show, in which file, and what cannot be drawn."""

import itertools
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

import jaxprune
from jaxprune.analysis import plot, summary


def figures(layers: int = 3) -> Any:
    params = {f"layer_{i:03}": jnp.arange(64.0).reshape(8, 8) for i in range(layers)}
    params, masks = jaxprune.prune(params, 0.75)
    return summary(params, masks, print_table=False)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written, kept."""
    kept: list[Figure] = []
    write = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, file: (kept.append(self), write(self, file))
    )
    return kept


SIGNATURES = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml", ".PNG": b"\x89PNG"}


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_the_suffix_decides_the_format(tmp_path: Path, suffix: str):
    file = tmp_path / "new" / f"picture{suffix}"
    assert plot.over_time([0, 1], [0.0, 0.5], str(file)) == file
    assert file.read_bytes().startswith(SIGNATURES[suffix])


def test_a_bar_for_each_layer(tmp_path: Path, drawn: list[Figure]):
    plot.per_layer(figures(), tmp_path / "layers.png")
    (axes,) = drawn[0].axes
    (bars,) = axes.containers
    np.testing.assert_array_equal([bar.get_width() for bar in bars], [75.0] * 3)
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "layer_000",
        "layer_001",
        "layer_002",
    ]
    assert axes.get_title("left") == "total 75.0%: 48 of 192 weights kept"
    assert {text.get_text().strip() for text in axes.texts} == {"75.0%   16 of 64"}
    top, bottom = (axes.transData.transform((0, place))[1] for place in (0, 2))
    assert top > bottom


def test_labels_do_not_overlap_and_are_on_the_picture(tmp_path: Path, drawn: list[Figure]):
    plot.per_layer(figures(40), tmp_path / "layers.png")
    figure = drawn[0]
    (axes,) = figure.axes
    labels = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(a.y0 >= b.y1 for a, b in itertools.pairwise(labels))
    page = figure.bbox
    for box in [*labels, *(text.get_window_extent() for text in axes.texts)]:
        assert page.x0 <= box.x0 <= box.x1 <= page.x1
        assert page.y0 <= box.y0 <= box.y1 <= page.y1


def test_a_line_for_each_series(tmp_path: Path, drawn: list[Figure]):
    steps = np.arange(0, 2000, 500)
    series = {"one": [0.0, 0.1, 0.2, 0.9], "two": jnp.array([0.0, 0.5, 0.5, 0.5])}
    plot.over_time(steps, series, tmp_path / "time.png")
    (axes,) = drawn[0].axes
    for line, (label, values) in zip(axes.lines, series.items(), strict=True):
        assert line.get_label() == label
        np.testing.assert_allclose(line.get_ydata(), 100 * np.asarray(values))
        np.testing.assert_array_equal(line.get_xdata(), steps)
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two"]
    assert [label.get_text() for label in axes.get_yticklabels()][::5] == ["0%", "100%"]
    assert "1,000" in [label.get_text() for label in axes.get_xticklabels()]


def test_one_series_needs_no_legend(tmp_path: Path, drawn: list[Figure]):
    plot.over_time(range(3), [0.0, 0.5, 1.0], tmp_path / "time.png")
    assert not drawn[0].legends


def test_many_series_are_told_apart(tmp_path: Path, drawn: list[Figure]):
    series = {str(i): [0.0, i / 20] for i in range(20)}
    plot.over_time([0, 1], series, tmp_path / "time.png")
    (axes,) = drawn[0].axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 20


def test_matplotlib_is_left_alone(tmp_path: Path):
    before = dict(matplotlib.rcParams)
    plot.over_time([0, 1], [0.0, 0.5], tmp_path / "time.png")
    plot.per_layer(figures(), tmp_path / "layers.png")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize(
    ("steps", "series", "text"),
    [
        (
            [0, 1],
            [0.5],
            "series has shape (1,), steps has shape (2,). Give one sparsity for each step.",
        ),
        (
            [0, 1],
            {"a": [[0.5, 0.5]]},
            "series['a'] has shape (1, 2), steps has shape (2,). Give one sparsity for each step.",
        ),
        (
            [0, 10],
            {"a": [0.5, 90.0]},
            "series['a'] is 90.0 at step 10; a sparsity is the share of zeros, in [0, 1].",
        ),
        (
            [0, 10],
            [np.nan, 0.5],
            "series is nan at step 0; a sparsity is the share of zeros, in [0, 1].",
        ),
        ([], [], "there is nothing to draw: give at least one step and one series."),
        ([0], {}, "there is nothing to draw: give at least one step and one series."),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, steps: Any, series: Any, text: str):
    with pytest.raises(ValueError) as error:
        plot.over_time(steps, series, tmp_path / "time.png")
    assert str(error.value) == text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["picture", "picture.abc"])
def test_an_unknown_suffix_is_refused(tmp_path: Path, name: str):
    file = tmp_path / name
    want = (
        f"file={str(file)!r} has the suffix {file.suffix!r}; it decides the format, one of "
        "eps, jpeg, jpg, pdf, pgf, png, ps, raw, rgba, svg, svgz, tif, tiff, webp."
    )
    with pytest.raises(ValueError) as error:
        plot.per_layer(figures(), file)
    # Which formats there are depends on matplotlib and on what else is installed.
    assert re.sub("avif, |gif, ", "", str(error.value)) == want
