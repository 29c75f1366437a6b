"""Print how much memory a compiled step takes beyond the bare optimizer's. Run on one device."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tests.members import TRANSFORMS
from tests.transforms.common import rig

SIDE, LEAVES = 256, 4


def temporaries(tx: optax.GradientTransformation, params: Any) -> int:
    """Bytes that one compiled, donated step needs besides its arguments and results."""
    state = jax.eval_shape(tx.init, params)
    step = jax.jit(rig.step_of(tx), donate_argnums=(0, 1))
    return step.lower(params, state, params).compile().memory_analysis().temp_size_in_bytes


def main() -> None:
    assert jax.device_count() == 1
    params = {f"layer{i}": {"kernel": jnp.ones((SIDE, SIDE))} for i in range(LEAVES)}
    bare = temporaries(rig.SGD, params)
    extra = {
        row.name: temporaries(rig.transform(row, rig.SGD, params), params) - bare
        for row in TRANSFORMS
    }
    print(json.dumps({"weights": LEAVES * SIDE**2, "leaf": SIDE**2, "extra": extra}))


if __name__ == "__main__":
    main()
