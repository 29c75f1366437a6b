"""The snippets that the docs show, one for each framework: they run, and share the one line."""

import runpy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxprune._core import paths

SNIPPETS = sorted((Path(__file__).resolve().parents[2] / "docs" / "snippets").glob("interop_*.py"))
THE_LINE = """
# The one line.
tx = jaxprune.gradual(
    optax.adamw(1e-2), jaxprune.schedules.cubic(0.0, 0.8, begin=10, end=60), every=10
)
"""


def test_every_framework_has_a_snippet():
    names = {path.stem.removeprefix("interop_") for path in SNIPPETS}
    assert names == {"dict", "equinox", "haiku", "linen", "nnx"}


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("path", SNIPPETS, ids=lambda path: path.stem)
def test_a_snippet_prunes_the_kernels_and_has_the_one_line(path: Path):
    assert THE_LINE in path.read_text()
    after: dict[str, Any] = runpy.run_path(str(path))
    masks, pruned = paths.flatten(after["masks"]), paths.flatten(after["pruned"])
    shapes = {jax.typeof(mask).shape for mask in masks.values()}
    assert shapes in ({(8, 64), (64, 3)}, {(64, 8), (3, 64)})
    for name, mask in masks.items():
        assert int(mask.sum()) == round(0.2 * mask.size), name
        np.testing.assert_array_equal(pruned[name] != 0, mask, err_msg=name)
    assert jax.tree.structure(after["masks"]).num_leaves == 2
