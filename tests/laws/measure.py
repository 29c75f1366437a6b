"""What the laws count: compilations, and the collectives of a compiled program."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax

from experiments import hlo


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
    for kind, shapes, _ in hlo.operations(compiled):
        if kind in hlo.COLLECTIVES | {"sort"}:
            largest = max(math.prod(lengths) for _, lengths in shapes)
            sizes[kind] = max(largest, sizes.get(kind, 0))
    return sizes
