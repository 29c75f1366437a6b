"""Which transforms a check runs over in the fast suite, and which are left to the slow one."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.members import TRANSFORMS, TransformRow


def marked(*values: Any, fast: bool) -> Any:
    """A case of a test, slow if it is not fast."""
    name = "-".join(map(str, values))
    return pytest.param(*values, id=name, marks=[] if fast else pytest.mark.slow)


def is_core(row: TransformRow) -> bool:
    """Tell whether a transform does no more than what all do: prune and keep zeros."""
    return "regrows" not in row.needs


def is_family(row: TransformRow) -> bool:
    """Tell whether no other row stands for its code."""
    return row.akin_to is None


def _over(fast: Callable[[TransformRow], bool]) -> Any:
    return pytest.mark.parametrize("row", [marked(row, fast=fast(row)) for row in TRANSFORMS])


every_row = _over(lambda row: True)
"""For checks that compile nothing, or once."""

a_row_a_family = _over(is_family)
"""For checks that compile a program of their own; what is akin to another is slow."""

core_rows = _over(is_core)
"""For checks of what is common to all programs; all but the core are slow."""
