"""Every transform in the types in which people train."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune._core import paths
from tests import third_party
from tests.members import CALLS, TRANSFORMS, TransformRow
from tests.transforms.common import rig
from tests.transforms.common.rows import is_core, marked


class Types(NamedTuple):
    """Of a training run."""

    params: Any
    grads: Any

    def __str__(self) -> str:
        return "-".join(jnp.dtype(one).name for one in self)


BFLOAT16 = Types(jnp.bfloat16, jnp.bfloat16)
TYPES = (
    BFLOAT16,
    Types(jnp.bfloat16, jnp.float32),
    Types(jnp.float32, jnp.bfloat16),
    Types(jnp.float16, jnp.bfloat16),
)
CASES = [
    marked(row, types, fast=is_core(row) or types is BFLOAT16)
    for row in TRANSFORMS
    for types in TYPES
]


@functools.cache
def decayed() -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))


@pytest.mark.parametrize(("row", "types"), CASES)
def test_pruned_weights_are_exactly_zero_in_every_type(row: TransformRow, types: Types):
    """A grown weight is zero in the call in which it grows, and moves from the next on.

    In eight bits of precision one in hundreds of the others lands on zero by chance.
    """
    of_params, of_grads = types
    params = rig.parameters(of_params)
    tx = rig.transform(row, decayed(), params)
    apply, state = third_party.leniently(optax.apply_updates), tx.init(params)
    before = rig.snapshot(params, state).masks
    for call in range(CALLS):
        updates, state = tx.update(rig.gradients(call, of_grads), state, params)
        for path, update in paths.flatten(updates).items():
            assert path in rig.EXEMPT or update.dtype == _wide(update.dtype, of_params)
        params = apply(params, updates)
        found = rig.snapshot(params, state)
        for path, mask in found.masks.items():
            assert found.params[path].dtype == of_params
            zeros = found.final[path] == 0
            assert zeros.any() or row.sparsities[call] == 0.0
            if "dense" not in row.needs:
                assert zeros[~mask].all()
                assert found.final[path].tobytes() == found.params[path].tobytes()
                assert zeros[mask & before[path]].mean() < 0.01
            assert np.isfinite(found.params[path].astype(np.float32)).all()
        before = found.masks


def _wide(one: Any, other: Any) -> Any:
    with third_party.lenient():
        return jnp.promote_types(one, other)
