"""What a compiled step takes besides the bare optimizer's."""

import functools
import json
import math
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxprune
from experiments.benchmarks import tpu_aot
from tests.members import TransformRow
from tests.transforms.common import rig
from tests.transforms.common.rows import every_row

# By default the CPU compiler runs leaves at the same time at the price of memory; others do not.
_FLAGS = "--xla_cpu_enable_concurrency_optimized_scheduler=false"

TABLES = 2**14  # bytes, of counts and the like


STACKED = (8, 4096, 4096)


@pytest.mark.slow(reason="compiles large searches for a TPU")
@pytest.mark.real.with_args(tpu_aot.missing)
@pytest.mark.standard_promotion
@pytest.mark.parametrize("name", ["gradual", "rigl"])
def test_on_a_tpu_one_stacked_weight_is_ranked_at_a_time(name: str):
    sharding = tpu_aot.sharding("v5e")
    kernel = jax.ShapeDtypeStruct(STACKED, jnp.float32, sharding=sharding)
    params = {f"layers{i}": {"kernel": kernel} for i in range(4)}
    ramp = jaxprune.schedules.cubic(0.0, 0.8, begin=10, end=200)
    layers = {"layers": 0}
    tx = {
        "gradual": jaxprune.gradual(optax.adamw(1e-3), ramp, every=10, layers=layers),
        "rigl": jaxprune.rigl(optax.adamw(1e-3), 0.8, every=10, end=200, layers=layers),
    }[name]
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(tx.init, params),
    )
    step = jax.jit(rig.step_of(tx), donate_argnums=(0, 1)).lower(params, state, params).compile()
    weights = 4 * math.prod(STACKED)
    # New masks, and the scores of one of four weights; all scores are 4 bytes a weight.
    assert step.memory_analysis().temp_size_in_bytes < 2.1 * weights


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
