"""Read a compiled program: its operations, and those that move data between devices."""

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

COLLECTIVES = frozenset(
    {
        "all-gather",
        "all-reduce",
        "all-to-all",
        "collective-broadcast",
        "collective-permute",
        "ragged-all-to-all",
        "reduce-scatter",
    }
)

Shape = tuple[str, tuple[int, ...]]
"""A type and its lengths, as in ``("f32", (8, 128))``."""

_START = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = ")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_OPCODE = re.compile(r"\s*([a-z][\w-]*)\(")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


class Operation(NamedTuple):
    """One operation of a program.

    Attributes:
      kind: its name without ``-start``; of a custom call, ``custom-call:`` and what is called.
      shapes: the arrays of its result. What a ``-start`` hands over holds its operands too.
      bytes: the size of them all.
    """

    kind: str
    shapes: tuple[Shape, ...]
    bytes: int


def operations(program: Any) -> list[Operation]:
    """List the operations of a compiled program, or of its text, in every computation.

    An asynchronous pair is listed once, by its ``-start``.
    """
    text = program if isinstance(program, str) else program.as_text()
    return list(itertools.chain.from_iterable(map(_operation, text.splitlines())))


def collectives(program: Any) -> list[Operation]:
    """List the operations that move data between devices."""
    return [operation for operation in operations(program) if operation.kind in COLLECTIVES]


def kinds(program: Any) -> set[str]:
    """Return the names of all operations."""
    return {operation.kind for operation in operations(program)}


def _operation(line: str) -> Iterator[Operation]:
    start = _START.match(line)
    if start is None:
        return
    end = _end_of_type(line, start.end())
    opcode = _OPCODE.match(line, end)
    if opcode is None or opcode[1].endswith(("-done", "-update")):
        return
    found = _ARRAY.findall(line[start.end() : end])
    shapes = tuple(
        (name, tuple(int(n) for n in lengths.split(",") if n)) for name, lengths in found
    )
    yield Operation(_kind(opcode[1], line), shapes, sum(map(_bytes, shapes)))


def _end_of_type(line: str, start: int) -> int:
    """Return where a type ends: at the first space that no bracket encloses."""
    depth = 0
    for place in range(start, len(line)):
        depth += (line[place] in "([{") - (line[place] in ")]}")
        if line[place] == " " and depth == 0:
            return place
    return len(line)


def _kind(opcode: str, line: str) -> str:
    if opcode == "custom-call" and (target := _TARGET.search(line)):
        return f"custom-call:{target[1]}"
    return opcode.removesuffix("-start")


def _bytes(shape: Shape) -> int:
    name, lengths = shape
    digits = re.search(r"\d+", name)
    bits = int(digits[0]) if digits else {"pred": 8}.get(name, 0)
    return math.ceil(math.prod(lengths) * bits / 8)
