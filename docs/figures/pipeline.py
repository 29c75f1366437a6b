"""The picture of the concepts page: score -> allocation -> pattern -> mask -> transform.

Every cell and number in it is computed by the library, on two small kernels.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from docs.figures import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

import jaxprune

SHAPES = {"hidden": (8, 12), "out": (12, 4)}  # [in, out]
SCHEDULE = jaxprune.schedules.cubic(0.0, 0.75, begin=0, end=100)
ALLOCATION = jaxprune.allocation.erdos_renyi_kernel
PATTERNS = (
    jaxprune.Unstructured(),
    jaxprune.NM(2, 4),
    jaxprune.Block((2, 2)),
    jaxprune.Channel(-1),
)
WIDTH, HEIGHT, CELL = 8.2, 4.55, 0.082  # inches
COLUMNS = (0.12, 1.78, 3.42, 5.24, 6.84)  # left edges of the five stages
STAGES = (
    ("score", "what is it worth?", "scores.magnitude"),
    ("allocation", "who pays how much?", "erdos_renyi_kernel"),
    ("pattern", "which shapes may\nzeros take?", "Unstructured()"),
    ("mask", "what stays?\nTrue = kept", "exactly k, no sort"),
    ("transform", "weights land on\nexactly zero", "where(mask, step, −w)"),
)
TOP, MIDDLE = 3.28, 2.42  # of the drawings, and of the arrows between them


def weights() -> dict[str, jax.Array]:
    """Two kernels, the second one larger by weight and smaller by size."""
    keys = jax.random.split(jax.random.key(4), len(SHAPES))
    return {
        path: jax.random.normal(key, shape)
        for key, (path, shape) in zip(keys, SHAPES.items(), strict=True)
    }


def trained(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The weights after the update that prunes them."""
    tx = jaxprune.gradual(
        optax.sgd(0.1), SCHEDULE.final, allocation=ALLOCATION, where=lambda path, leaf: True
    )
    updates, _ = tx.update(params, tx.init(params), params)
    return optax.apply_updates(params, updates)  # type: ignore[return-value]
