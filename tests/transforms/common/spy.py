"""Watch what a transform asks of the optimizer that it wraps, and what it makes of the answer."""

import functools
from typing import Any, NamedTuple

import numpy as np
import optax

from tests import third_party
from tests.members import CALLS, TransformRow
from tests.transforms.common import rig
from tests.transforms.common.inners import Inner

Arrays = dict[str, np.ndarray]


class Watched(NamedTuple):
    """One call of update: all arrays by path, on the host."""

    grads: Arrays
    asked: Arrays  # gradients that the optimizer was given
    answer: Arrays  # its updates
    updates: Arrays  # the transform's
    moments: Arrays  # the optimizer's state as it left it
    before: rig.Call
    after: rig.Call


class Spy:
    """An optimizer that remembers its last call."""

    def __init__(self, inner: Inner) -> None:
        self.inner = inner
        self.asked: Any = None
        self.answer: Any = None

    def init(self, params: Any) -> Any:
        return self.inner.tx.init(params)

    def update(self, updates: Any, state: Any, params: Any = None) -> Any:
        self.asked = updates
        self.answer = self.inner.update(updates, state, params)
        return self.answer


@functools.cache
def watched(row: TransformRow, inner: Inner) -> tuple[Watched, ...]:
    """Train outside jit and watch every call."""
    spy, params = Spy(inner), rig.parameters()
    tx = row.make(optax.GradientTransformation(spy.init, spy.update), params)
    apply = third_party.leniently(optax.apply_updates)
    state, found = tx.init(params), []
    after = rig.snapshot(params, state)
    for call in range(CALLS):
        grads, before = rig.gradients(call), after
        updates, state = tx.update(grads, state, params)
        params = apply(params, updates)
        answer, moments = spy.answer
        arrays = (rig.host(tree) for tree in (grads, spy.asked, answer, updates))
        after = rig.snapshot(params, state)
        found.append(Watched(*arrays, rig.leaves(moments), before, after))
    return tuple(found)


@functools.cache
def bare(inner: Inner) -> tuple[Arrays, ...]:
    """Train with the optimizer alone, on the same gradients."""
    params = rig.parameters()
    state, found = inner.tx.init(params), []
    for call in range(CALLS):
        updates, state = inner.update(rig.gradients(call), state, params)
        params = third_party.leniently(optax.apply_updates)(params, updates)
        found.append(rig.host(params))
    return tuple(found)
