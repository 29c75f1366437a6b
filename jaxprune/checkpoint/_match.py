"""Does a checkpoint belong to a template? Leaves, shapes, dtypes, and the recipe of training."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxprune.checkpoint._leaves import Spec, spec_of

_LISTED = 8


def check_match(
    where: str, saved: Mapping[str, Spec], leaves: Mapping[str, Any], prints: Mapping[str, Any]
) -> None:
    """Raise if a checkpoint is one of another model, optimizer or recipe.

    Args:
      where: names the checkpoint.
      saved: its leaves.
      leaves: those of the template.
      prints: its fingerprints by path.
    """
    differences = list(_differences(saved, leaves))
    recipes = list(_other_recipes(prints, fingerprints(leaves)))
    if differences:
        more = len(differences) - _LISTED
        lines = differences[:_LISTED] + ([f"and {more} more"] if more > 0 else []) + recipes
        raise ValueError(
            f"{where} does not match the template:\n  "
            + "\n  ".join(lines)
            + "\nIt is a checkpoint of another model or optimizer. Build the template as in the "
            "run that saved it, or pass that model's directory."
        )
    if recipes:
        raise ValueError(
            f"{where} was saved with another recipe of sparse training: {'; '.join(recipes)}. "
            "Give the transform the sparsity, schedule, pattern, score and allocation of that "
            "run. To go on with another recipe, restore with the old one and pass the parameters "
            "to the new transform's init."
        )


def _differences(saved: Mapping[str, Spec], leaves: Mapping[str, Any]) -> Iterator[str]:
    for path, leaf in leaves.items():
        want = spec_of(path, leaf)
        if path not in saved:
            yield f"{path!r}: {want} in the template, nothing in the checkpoint"
        elif not saved[path].fits(want):
            yield f"{path!r}: {saved[path]} in the checkpoint, {want} in the template"
    for path in saved:
        if path not in leaves:
            yield f"{path!r}: {saved[path]} in the checkpoint, nothing in the template"


def _other_recipes(saved: Mapping[str, Any], present: Mapping[str, Any]) -> Iterator[str]:
    for path in sorted(saved.keys() & present.keys()):
        if saved[path] != present[path]:
            old, new = _hex(saved[path]), _hex(present[path])
            yield f"the recipe at {path!r} is {old} in the checkpoint and {new} in the template"


def fingerprints(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that identify recipes, by path: known by name in every container.

    Leaves whose shape alone is known, or whose buffer is donated, have none.
    """
    named = {p: leaf for p, leaf in leaves.items() if p.rsplit("/", 1)[-1] == "fingerprint"}
    return {path: np.asarray(leaf).tolist() for path, leaf in named.items() if _has_value(leaf)}


def _has_value(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array):
        return not leaf.is_deleted()
    return not isinstance(leaf, jax.ShapeDtypeStruct)


def _hex(value: Any) -> str:
    return f"{value:#010x}" if isinstance(value, int) else str(value)
