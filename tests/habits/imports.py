"""Which file imports which, read from the sources, and the floors that the arrows may not climb."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Imports go down only. A room is a folder or file at the top of the package.
FLOORS = (
    {"_core", "types", "schedules"},
    {"scores", "patterns", "allocation", "formats", "graph"},
    {"masks", "structured", "kernels"},
    {
        *("transforms", "initial", "posttraining", "recovery", "analysis", "checkpoint"),
        *("execute", "nnx"),
    },
    {"models"},
    {"cli", "__main__"},
)
ALONE = FLOORS[1]  # these stand on the ground, not on one another
FACE = "__init__"  # imports from every floor; nothing imports it
OUTSIDE = ("experiments", "tests")

Arrows = dict[str, set[str]]


def sources() -> dict[str, str]:
    """Every module of the package, by dotted name, with its text."""
    package = ROOT / "jaxprune"
    return {_module(path.relative_to(ROOT)): path.read_text() for path in package.rglob("*.py")}


def arrows(texts: Mapping[str, str]) -> Arrows:
    """For each module, the modules of the package that it imports, wherever in the file."""
    return {
        name: {found for found in _imported(ast.parse(text), texts) if found != name}
        for name, text in texts.items()
    }


def climbs(graph: Mapping[str, set[str]]) -> list[str]:
    """The arrows that do not go down, as sentences; the floors are those of `FLOORS`."""
    pairs = ((a, b) for a in sorted(graph) for b in sorted(graph[a]))
    return [f"{a} imports {b}: {why}" for a, b in pairs if (why := _objection(room(a), room(b)))]


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """One import cycle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def rooms(graph: Mapping[str, set[str]]) -> Arrows:
    """The same arrows between rooms; what stays inside a room is left out."""
    merged: Arrows = {}
    for module, targets in graph.items():
        here = merged.setdefault(room(module), set())
        here.update(room(target) for target in targets if room(target) != room(module))
    return merged


def room(module: str) -> str:
    """The room that a module belongs to."""
    parts = module.split(".")
    if parts[0] in OUTSIDE:
        return parts[0]
    return parts[1] if len(parts) > 1 else FACE


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(tree: ast.AST, known: Mapping[str, str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from package import name` may take a module or something inside the package.
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else str(node.module) for name in full]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in {"jaxprune", *OUTSIDE})


def _floor(name: str) -> int | None:
    return next((height for height, floor in enumerate(FLOORS) if name in floor), None)


def _objection(above: str, below: str) -> str | None:
    if below in OUTSIDE:
        return f"the library stands without {below}"
    if above in (FACE, below):
        return None
    if below == FACE:
        return "nothing imports the face"
    heights = _floor(above), _floor(below)
    if heights[0] is None or heights[1] is None:
        return f"give {above if heights[0] is None else below!r} a floor in tests/habits/imports.py"
    if heights[1] > heights[0]:
        return f"floor {heights[1]} is above floor {heights[0]}"
    if heights[0] == heights[1] and above in ALONE:
        return "rooms of this floor stand on the ground alone"
    return None
