"""The recipe of the how-to page is short, and equal to RigL step for step."""

import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from tests.docs import snippets

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "write-a-recipe.md"


@pytest.fixture
def code() -> str:
    return snippets.find(PAGE)[0].code


def test_it_has_fewer_than_20_lines(code: str) -> None:
    body = code[code.index("def my_rigl") :]
    assert len([line for line in textwrap.dedent(body).splitlines() if line.strip()]) < 20


def test_it_equals_rigl_step_for_step(code: str) -> None:
    namespace: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), namespace)
    inner = optax.sgd(0.1, momentum=0.9)
    settings: dict[str, Any] = {"every": 3, "end": 12, "drop": 0.9}
    transforms = (
        namespace["my_rigl"](inner, 64, **settings),
        jaxprune.rigl(inner, 0.75, **settings),
    )
    weight = jax.random.normal(jax.random.key(1), (16, 16))
    params = [{"kernel": weight}] * 2
    states = [tx.init(p) for tx, p in zip(transforms, params, strict=True)]
    masks = []
    for step in range(12):
        grads = {"kernel": jax.random.normal(jax.random.key(step + 2), (16, 16))}
        for which, tx in enumerate(transforms):
            updates, states[which] = tx.update(grads, states[which], params[which])
            params[which] = optax.apply_updates(params[which], updates)
        mine, ours = (np.asarray(jaxprune.get_masks(state)["kernel"]) for state in states)
        np.testing.assert_array_equal(mine, ours)
        np.testing.assert_array_equal(params[0]["kernel"], params[1]["kernel"])
        masks.append(mine)
    changed = [s for s in range(1, 12) if (masks[s] != masks[s - 1]).any()]
    assert changed == [3, 6, 9]
    assert jnp.sum(masks[-1]) == 64
