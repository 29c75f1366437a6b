"""Imports go down only, between rooms and between files, and never in a circle."""

import pytest

from tests.habits import imports


@pytest.fixture(scope="module")
def graph() -> imports.Arrows:
    return imports.arrows(imports.sources())


def test_no_import_goes_up(graph: imports.Arrows):
    assert not imports.climbs(graph)


def test_no_circle_of_files(graph: imports.Arrows):
    assert not imports.cycle(graph)


def test_no_circle_of_rooms(graph: imports.Arrows):
    assert not imports.cycle(imports.rooms(graph))


ROOM = {"jaxprune": "", "jaxprune._core": "", "jaxprune.scores": "", "jaxprune.masks": ""}


@pytest.mark.parametrize(
    ("module", "line", "objection"),
    [
        ("jaxprune.scores", "from jaxprune.masks import x", "floor 2 is above floor 1"),
        ("jaxprune.scores", "def f():\n  import jaxprune.masks", "floor 2 is above floor 1"),
        ("jaxprune.patterns", "from jaxprune.scores import x", "stand on the ground alone"),
        ("jaxprune.masks", "from jaxprune import x", "nothing imports the face"),
        ("jaxprune.attic", "from jaxprune._core import x", "give 'attic' a floor"),
        ("jaxprune.cli", "import experiments.quickstart", "stands without experiments"),
    ],
)
def test_a_climbing_import_is_found(module: str, line: str, objection: str):
    found = imports.climbs(imports.arrows(ROOM | {module: line}))
    assert len(found) == 1
    assert objection in found[0]


def test_imports_that_go_down_are_let_through():
    texts = {
        "jaxprune": "from jaxprune.masks import x",
        "jaxprune.masks": "from jaxprune import scores\nfrom jaxprune.scores import y",
        "jaxprune.scores": "from jaxprune._core import z",
    }
    assert not imports.climbs(imports.arrows(ROOM | texts))


def test_a_circle_is_found():
    texts = {"jaxprune._core": "import jaxprune.types", "jaxprune.types": "import jaxprune._core"}
    assert set(imports.cycle(imports.arrows(texts))) == {"jaxprune._core", "jaxprune.types"}
