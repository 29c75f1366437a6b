"""Find the ```python blocks of a Markdown page and run them, in order, in one namespace."""

import doctest
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^(?P<indent>\s*)(?P<fence>`{3,}|~{3,})\s*(?P<info>.*?)\s*$")
NOT_RUN = re.compile(r"<!-- snippet: not run, (?P<reason>.+?) -->")
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@dataclass(frozen=True)
class Snippet:
    """One ```python block: where it stands, and why it is not run, if it is not."""

    page: Path
    line: int  # of the first line of code, from 1
    code: str
    not_run: str | None = None


def find(page: Path) -> list[Snippet]:
    """The ```python blocks of a page, those inside directives (tabs, notes) included."""
    lines = page.read_text().splitlines()
    found: list[Snippet] = []
    position, above = 0, ""
    while position < len(lines):
        line, start = lines[position], position + 1
        position += 1
        fence = FENCE.match(line)
        if fence and _is_literal(fence["info"]):
            position = _end(lines, start, fence["fence"])
            if fence["info"] == "python":
                code = "\n".join(
                    text.removeprefix(fence["indent"]) for text in lines[start:position]
                )
                mark = NOT_RUN.search(above)
                found.append(Snippet(page, start + 1, code + "\n", mark and mark["reason"]))
            position += 1
        above = line if line.strip() else above
    return found


def run(snippets: list[Snippet]) -> None:
    """Run the snippets of one page in one namespace; a `>>>` block as a doctest."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for snippet in snippets:
        if snippet.not_run is None:
            (_run_doctest if ">>>" in snippet.code else _run_code)(snippet, namespace)


def _is_literal(info: str) -> bool:
    # What stands in a directive, `{...}`, is Markdown again; an empty `info` may close one.
    return bool(info) and not info.startswith("{")


def _end(lines: list[str], start: int, fence: str) -> int:
    closing = re.compile(rf"\s*{re.escape(fence[0])}{{{len(fence)},}}\s*$")
    return next((i for i in range(start, len(lines)) if closing.match(lines[i])), len(lines))


def _run_code(snippet: Snippet, namespace: dict[str, Any]) -> None:
    # Blank lines before it, so that a traceback shows the line of the page.
    code = "\n" * (snippet.line - 1) + snippet.code
    exec(compile(code, str(snippet.page), "exec"), namespace)


def _run_doctest(snippet: Snippet, namespace: dict[str, Any]) -> None:
    name, where = snippet.page.name, str(snippet.page)
    test = doctest.DocTestParser().get_doctest(snippet.code, {}, name, where, snippet.line - 1)
    test.globs = namespace
    doctest.DebugRunner(optionflags=OPTIONS).run(test, clear_globs=False)
