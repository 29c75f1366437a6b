"""A training step moves no more than the bare optimizer's, but for a few counts."""

import jax
import numpy as np
import pytest

from tests.members import TRANSFORMS, TransformRow
from tests.transforms.common import collectives
from tests.transforms.common.placements import LAYERS, PLACEMENTS, SHAPES, Placement
from tests.transforms.common.rows import marked

PROBES = 5  # thresholds that a pass of the search counts
COUNTS = PROBES * LAYERS * 4  # bytes
ONE_PLACEMENT = {"rigl": "FSDP × tensor, scanned layers", "ste": "FSDP", "acdc": "`shard_map`"}


def is_fast(row: TransformRow, placement: Placement) -> bool:
    """One transform that searches goes everywhere; those that do more, or not, to one place."""
    searches = row.name == "gradual" and placement.name != "FSDP × tensor"  # as explicit axes
    return searches or ONE_PLACEMENT.get(row.name) == placement.name


EVERYWHERE = [
    marked(row, placement, fast=is_fast(row, placement))
    for row in TRANSFORMS
    for placement in PLACEMENTS
    if not (row.name == "top_kast" and placement.manual)
]


@pytest.mark.parametrize(("row", "placement"), EVERYWHERE)
def test_only_counts_are_moved_beyond_the_bare_step(row: TransformRow, placement: Placement):
    found = collectives.added(row, placement)
    assert {operation.kind for operation in found} <= {"all-reduce"}
    assert max((operation.bytes for operation in found), default=0) <= COUNTS
    assert min(map(np.prod, SHAPES.values())) / jax.device_count() > COUNTS
    # What the bare step moves is moved alike.
    assert not collectives.moved(None, placement) - collectives.moved(row, placement)


@pytest.mark.slow(reason="compiles every transform in every placement")
def test_the_table_is_current():
    written = collectives.PAGE.read_text()
    if collectives.version() not in written:
        pytest.skip(f"the page was made by another version than jax {jax.__version__}")
    assert written == collectives.page()
