"""What is true of every file: its size, its words, its pins."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sorted(
    path
    for folder in ("jaxprune", "experiments", "tests", "docs")
    for path in (ROOT / folder).rglob("*.py")
    if "_build" not in path.parts
)
PROSE = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SETTINGS = [ROOT / name for name in ("Makefile", "pyproject.toml", "conftest.py", ".ci/run")]

LINES_OF_A_FILE = 500
LINES_OF_A_FUNCTION = 60  # its docstring not counted
LINES_OF_A_KERNEL = 120
LINES_PER_SILENCER = 500

LEFTOVER = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
MACHINE = re.compile(r"(?<![\w./~-])/(?:work|root|home|tmp|Users|mnt)/")
SILENCER = re.compile(r"#\s*(?:noqa|type:\s*ignore|pyright:\s*ignore)")


def lengths(text: str) -> dict[str, int]:
    """The lines of each function of a source text, its docstring not counted."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = node.body[0] if ast.get_docstring(node) else None
            skipped = doc.end_lineno - doc.lineno + 1 if doc and doc.end_lineno else 0
            found[node.name] = (node.end_lineno or node.lineno) - node.lineno + 1 - skipped
    return found


def lines_with(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    """Where a pattern is found, as `file:line: text`."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]


def lower_pins() -> dict[str, str]:
    """The lower bounds that pyproject.toml declares."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return dict(line.split(">=") for line in needed if ">=" in line)


def constraints(name: str) -> dict[str, str]:
    """The versions that a file of constraints names."""
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    return dict(line.replace("_", "-").split("==") for line in pins)


def test_files_are_short():
    long = {p: n for p in PYTHON if (n := len(p.read_text().splitlines())) > LINES_OF_A_FILE}
    assert not long


def test_functions_are_short():
    long = [
        f"{path.relative_to(ROOT)}: {name} has {count} lines"
        for path in PYTHON
        for name, count in lengths(path.read_text()).items()
        if count > (LINES_OF_A_KERNEL if "kernels" in path.parts else LINES_OF_A_FUNCTION)
    ]
    assert not long


def test_a_function_is_measured_without_its_docstring():
    assert lengths('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n') == {"f": 2}


def test_nothing_is_left_over():
    assert not lines_with(LEFTOVER, [*PYTHON, *PROSE, *SETTINGS])


def test_no_file_names_a_machine():
    assert not lines_with(MACHINE, [*PYTHON, *PROSE, *SETTINGS])


@pytest.mark.parametrize("line", ['open("/ho' + 'me/me/x")', "in `/t" + "mp/x`"])
def test_a_machine_is_found(line: str):
    assert MACHINE.search(line)


def test_linters_are_seldom_silenced():
    lines = sum(len(path.read_text().splitlines()) for path in PYTHON)
    silencers = lines_with(SILENCER, PYTHON)
    assert len(silencers) <= max(1, lines // LINES_PER_SILENCER), silencers


def test_the_changelog_has_a_section_for_what_is_not_released():
    text = (ROOT / "CHANGELOG.md").read_text()
    unreleased = text.partition("## [Unreleased]")[2].partition("\n## [")[0]
    assert re.search(r"^### \w+\n\n- \w", unreleased, re.M)


@pytest.mark.parametrize(("package", "version"), lower_pins().items())
def test_a_lower_bound_is_the_version_that_is_tested(package: str, version: str):
    assert constraints("oldest")[package] == version


def test_jax_has_a_lower_bound():
    assert "jax" in lower_pins()


def test_the_newest_end_is_newer():
    ends = [tuple(map(int, constraints(end)["jax"].split("."))) for end in ("oldest", "newest")]
    assert ends[0] < ends[1]
