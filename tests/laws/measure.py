"""What the laws count: compilations, and the collectives of a compiled program."""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import jax

_COLLECTIVE = re.compile(
    r"= (?P<types>[^=]*?) "
    r"(?P<name>all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter|sort)"
    r"(?:-start)?\("
)
_TYPE = re.compile(r"[a-z]+\d*\[([\d,]*)\]")


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Collect one entry for each program that is compiled inside the block."""
    found: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: Any) -> None:
        del duration_secs, kwargs
        if event.endswith("backend_compile_duration"):
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def collectives(compiled: Any) -> dict[str, int]:
    """The collectives (and sorts) of a compiled program, each with its largest array's size."""
    sizes: dict[str, int] = {}
    for match in _COLLECTIVE.finditer(compiled.as_text()):
        shapes = _TYPE.findall(match["types"])
        largest = max(math.prod(int(n) for n in s.split(",") if n) for s in shapes)
        sizes[match["name"]] = max(largest, sizes.get(match["name"], 0))
    return sizes
