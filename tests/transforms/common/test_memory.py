"""What a compiled step takes besides the bare optimizer's."""

import functools
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.members import TransformRow
from tests.transforms.common.rows import every_row

# By default the CPU compiler runs leaves at the same time at the price of memory; others do not.
_FLAGS = "--xla_cpu_enable_concurrency_optimized_scheduler=false"

TABLES = 2**14  # bytes, of counts and the like


@functools.cache
def _measured() -> dict[str, Any]:
    """Measure all rows in a process of its own: this one has eight devices."""
    command = [sys.executable, "-m", "tests.transforms.common.memory"]
    environment = {**os.environ, "XLA_FLAGS": _FLAGS, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@every_row
def test_a_step_takes_a_byte_a_weight_and_the_key_and_mask_of_one_leaf(row: TransformRow):
    """An update that draws random numbers, or keeps a record, holds more of the leaves at once."""
    found = _measured()
    weights, leaf = found["weights"], found["leaf"]
    key, mask = 4 * leaf, leaf
    room = 5 * weights + 5 * key if "heavy updates" in row.needs else weights + key + mask
    assert found["extra"][row.name] <= room + TABLES
