"""Every check of this folder runs over every transform."""

import pytest

from tests.members import TRANSFORMS, TransformRow

# The first rows run with every optimizer, type and wrapper. Each of the others runs with a few of
# its own, so that each of these meets several transforms; the rest of the square is marked slow.
WITH_ALL = 2
STRIDES = {"inner": 8, "types": 4, "around": 7}


@pytest.fixture(params=TRANSFORMS, ids=repr)
def row(request: pytest.FixtureRequest) -> TransformRow:
    """Each public transform in turn."""
    return request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow the pairs that are off the diagonals."""
    for item in items:
        spec = getattr(item, "callspec", None)
        for name in STRIDES.keys() & (spec.params.keys() if spec is not None else ()):
            row, other = TRANSFORMS.index(spec.params["row"]), spec.indices[name]
            if row >= WITH_ALL and (row + other) % STRIDES[name]:
                item.add_marker(pytest.mark.slow)
