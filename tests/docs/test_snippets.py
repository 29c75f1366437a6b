"""Every ```python block of the README and the docs runs, and a block that is wrong is found out."""

import doctest
from pathlib import Path

import pytest

from tests.docs import snippets

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if "_build" not in page.parts
)
AT_MOST_NOT_RUN = 3


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_snippets_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    snippets.run(snippets.find(page))


def test_few_snippets_are_not_run():
    left_out = [s for page in PAGES for s in snippets.find(page) if s.not_run]
    listed = [f"{s.page.relative_to(ROOT)}:{s.line}: {s.not_run}" for s in left_out]
    assert len(listed) <= AT_MOST_NOT_RUN, listed


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "page.md"


def test_blocks_of_a_page_share_one_namespace(page: Path):
    page.write_text("```python\nx = 1\n```\n\n```python\n>>> x + 1\n2\n>>> y = 3\n```\n")
    snippets.run(snippets.find(page))
    page.write_text(page.read_text() + "```python\nassert y == 4\n```\n")
    with pytest.raises(AssertionError):
        snippets.run(snippets.find(page))


def test_an_exception_names_the_line_of_the_page(page: Path):
    page.write_text("# Title\n\n```python\nx = 1\nraise KeyError\n```\n")
    with pytest.raises(KeyError) as error:
        snippets.run(snippets.find(page))
    last = error.traceback[-1]
    assert (Path(last.path), last.lineno + 1) == (page, 5)


def test_wrong_output_fails(page: Path):
    page.write_text("```python\n>>> 1 + 1\n3\n```\n")
    with pytest.raises(doctest.DocTestFailure):
        snippets.run(snippets.find(page))


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("```bash\nls\n```\n```python\na\n```\n", ["a\n"]),
        ("````markdown\n```python\na\n```\n````\n", []),
        ("````{tab-item} Linen\n```python\na\n```\n````\n", ["a\n"]),
        ("::::{tab-set}\n:::{tab-item} X\n~~~python\na\n~~~\n:::\n::::\n", ["a\n"]),
        ("- item\n\n  ```python\n  if a:\n      b\n  ```\n", ["if a:\n    b\n"]),
    ],
)
def test_blocks_are_found(page: Path, text: str, codes: list[str]):
    page.write_text(text)
    assert [s.code for s in snippets.find(page)] == codes


def test_a_marked_block_is_listed_and_not_run(page: Path):
    mark = "<!-- snippet: not run, needs a GPU -->"
    page.write_text(f"{mark}\n```python\n1 / 0\n```\n\n```python\nx = 1\n```\n")
    found = snippets.find(page)
    assert [s.not_run for s in found] == ["needs a GPU", None]
    snippets.run(found)
