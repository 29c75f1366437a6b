"""What a run came to, as it is written down: the report and the masks."""

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.models.layout import hf_name, is_transposed
from jaxprune.posttraining import Block, PrunedWeight, Result


def report_of(
    settings: Mapping[str, Any], result: Result, *, dense: float, pruned: float, seconds: float
) -> dict[str, Any]:
    """Return the report of a run.

    Args:
      settings: of the run; they open the report.
      result: the pruned model.
      dense: perplexity before.
      pruned: perplexity after.
      seconds: since the command began.
    """
    some = [one for block in result.blocks for one in block.weights]
    zeros = sum(int(jnp.sum(one.weight == 0)) for one in some)
    size = sum(one.weight.size for one in some)
    return dict(settings) | {
        "perplexity": {"dense": dense, "pruned": pruned},
        "sparsity": zeros / size,
        "bytes": _sizes(result, some, zeros),
        "seconds": seconds,
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__, "jaxprune": _version()},
        "blocks": [_facts(block) for block in result.blocks],
    }


def masks_of(result: Result) -> dict[str, np.ndarray]:
    """Return the masks under the names and in the layout of the model's tensors."""
    found = {}
    for block in result.blocks:
        for one in block.weights:
            path = one.path if one.layer is None else one.path.replace("/", f"_{one.layer}/", 1)
            mask = np.asarray(one.mask)
            found[hf_name(path)] = np.ascontiguousarray(mask.T if is_transposed(path) else mask)
    return found


def _facts(block: Block) -> dict[str, Any]:
    fields = ("path", "layer", "sparsity", "error", "damping")
    weights = [{name: getattr(one, name) for name in fields} for one in block.weights]
    return {"seconds": block.seconds, "weights": weights}


def _sizes(result: Result, some: list[PrunedWeight], zeros: int) -> dict[str, int]:
    """Return the bytes of the model, and what it would take with a bit a weight and no zeros."""
    dense = sum(leaf.nbytes for leaf in jax.tree.leaves(result.params))
    bits = sum(one.weight.size for one in some)
    return {"dense": dense, "bitmap": dense - zeros * some[0].weight.dtype.itemsize + bits // 8}


def _version() -> str:
    try:
        return metadata.version("jaxprune")
    except metadata.PackageNotFoundError:  # run from its sources
        return "not installed"
