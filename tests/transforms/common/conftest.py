"""Every check of this folder runs over every transform."""

import pytest

from tests.members import TRANSFORMS, TransformRow


@pytest.fixture(params=TRANSFORMS, ids=repr)
def row(request: pytest.FixtureRequest) -> TransformRow:
    """Each public transform in turn."""
    return request.param
