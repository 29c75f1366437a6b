"""Every check of this folder runs over every transform."""

import pytest

from tests.members import TRANSFORMS, TransformRow
from tests.transforms.common.inners import INNERS

# The first rows run with every optimizer. Each of the others runs with a few of its own, so that
# every optimizer meets several transforms; the rest of the square is marked slow.
WITH_ALL, STRIDE = 2, 8


@pytest.fixture(params=TRANSFORMS, ids=repr)
def row(request: pytest.FixtureRequest) -> TransformRow:
    """Each public transform in turn."""
    return request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow the pairs of transform and optimizer that are off the diagonals."""
    for item in items:
        spec = getattr(item, "callspec", None)
        if spec is None or not {"row", "inner"} <= set(spec.params):
            continue
        row, inner = TRANSFORMS.index(spec.params["row"]), INNERS.index(spec.params["inner"])
        if row >= WITH_ALL and (row + inner) % STRIDE:
            item.add_marker(pytest.mark.slow)
