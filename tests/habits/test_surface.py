"""The public surface is a golden file; each name has a row, a page, and a full docstring."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.habits import surface
from tests.habits.tables import KINDS, NOT_MEMBERS

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
DOCUMENTED = {path: value for path, value in (surface.objects()).items() if surface.is_ours(value)}
FUNCTIONS = {path: value for path, value in DOCUMENTED.items() if inspect.isfunction(value)}


def test_the_surface_is_the_golden_file():
    want, got = surface.GOLDEN.read_text().splitlines(), surface.describe().splitlines()
    gone, new = sorted(set(want) - set(got)), sorted(set(got) - set(want))
    assert want == got, f"gone: {gone}; new: {new}; if intended, run `make golden`"


@pytest.mark.parametrize("kind", KINDS)
def test_every_public_member_has_a_row(kind: str):
    public = surface.modules()[f"jaxprune.{kind}"]
    # Members are called by a lower-case name, or else are the classes of patterns.
    named = {name for name in public if name[0].islower() or kind == "patterns"}
    rows = {row.name for row in KINDS[kind]}
    assert named - NOT_MEMBERS.get(kind, set()) == rows


@pytest.mark.parametrize("module", surface.modules())
def test_every_public_module_has_a_page(module: str):
    pages = "".join(page.read_text() for page in REFERENCE.glob("*.md"))
    assert f"```{{public-names}} {module}\n" in pages


@pytest.mark.parametrize("path", DOCUMENTED)
def test_a_docstring_opens_with_one_line(path: str):
    assert not opening_faults(inspect.getdoc(DOCUMENTED[path]) or "")


@pytest.mark.parametrize("path", FUNCTIONS)
def test_a_function_says_what_it_takes_and_gives_and_shows_it(path: str):
    assert not function_faults(FUNCTIONS[path])


@pytest.mark.parametrize(
    ("path", "paper"),
    [(f"jaxprune.{k}.{r.name}", r.paper) for k, rows in KINDS.items() for r in rows if r.paper],
)
def test_a_member_with_a_paper_refers_to_it(path: str, paper: str):
    module, name = path.rsplit(".", 1)
    doc = inspect.getdoc(surface.modules()[module][name]) or ""
    assert paper in doc.partition("Reference:")[2]


def opening_faults(doc: str) -> list[str]:
    """What is wrong with the first line of a docstring."""
    first, *rest = doc.splitlines() or [""]
    faults = {
        "no line that ends in a full stop or a question mark": not first.endswith((".", "?")),
        "no blank line after the first": bool(rest) and bool(rest[0].strip()),
    }
    return [fault for fault, found in faults.items() if found]


def function_faults(function: Callable[..., Any]) -> list[str]:
    """What a function's docstring leaves out."""
    doc = inspect.getdoc(function) or ""
    names = [p.name for p in surface.parameters(function)]
    returns = inspect.signature(function).return_annotation not in (None, "None")
    needed = {"Args:": bool(names), "Returns:": returns, "Example:": bool(names)}
    faults = [f"no {title}" for title, wanted in needed.items() if wanted and title not in doc]
    faults += [f"no {n} in Args" for n in names if not re.search(rf"^ +\**{n}\b.*:", doc, re.M)]
    if names and ">>>" not in doc.partition("Example:")[2]:
        faults.append("no >>> in Example")
    return faults


def test_a_poor_docstring_is_found():
    def poor(weights: list[float]) -> float:
        """Sum the weights
        and return them."""
        return sum(weights)

    assert len(opening_faults(inspect.getdoc(poor) or "")) == 2
    assert function_faults(poor) == [
        "no Args:",
        "no Returns:",
        "no Example:",
        "no weights in Args",
        "no >>> in Example",
    ]
