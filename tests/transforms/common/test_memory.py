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
    found = _measured()
    extra, key, mask = found["extra"][row.name], 4 * found["leaf"], found["leaf"]
    assert extra <= 1.01 * (found["weights"] + key + mask)
