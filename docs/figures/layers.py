"""The picture of the page on inspecting, drawn by the library from that page's model."""

from pathlib import Path

import jax

import jaxprune.analysis

SIZES = (784, 300, 100, 10)


def draw(file: Path) -> None:
    """Draw the picture."""
    pairs = [SIZES[i : i + 2] for i in range(3)]
    params = {
        f"Dense_{i}": {"kernel": jax.random.normal(jax.random.key(i), shape)}
        for i, shape in enumerate(pairs)
    }
    divide = jaxprune.allocation.erdos_renyi_kernel
    pruned, masks = jaxprune.prune(params, 0.98, allocation=divide)
    summary = jaxprune.analysis.summary(pruned, masks, print_table=False)
    jaxprune.analysis.plot.per_layer(summary, file)
