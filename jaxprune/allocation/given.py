"""Allocations that do not look at the layers: one sparsity for all, or one by name."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from jaxprune._core import paths
from jaxprune.schedules import as_sparsity
from jaxprune.types import Shapes


@dataclasses.dataclass(frozen=True, repr=False)
class Uniform:
    """The same density for every layer.

    ``density_l = 1 − sparsity``

    Call it with ``(shapes, sparsity)``: the shape of every prunable weight by path, and the share
    of zeros among all of them. It returns the density of each by path.

    Example:
      >>> from jaxprune import allocation
      >>> allocation.uniform({"a": (4, 4), "b": (64, 64)}, 0.75)
      {'a': 0.25, 'b': 0.25}
    """

    def __call__(self, shapes: Shapes, sparsity: Any) -> dict[str, Any]:
        """Return the density of every layer by path."""
        return dict.fromkeys(shapes, 1.0 - sparsity)

    def __repr__(self) -> str:
        return "uniform"


uniform = Uniform()


@dataclasses.dataclass(frozen=True)
class PerLayer:
    """Densities by name; see :func:`per_layer`."""

    rules: tuple[tuple[str, float], ...]
    of: float | None = None

    def __call__(self, shapes: Shapes, sparsity: Any) -> dict[str, Any]:
        """Return the density of every layer by path."""
        for regex, _ in self.rules:
            if shapes and not any(re.search(regex, path) for path in shapes):
                raise ValueError(
                    f"per_layer: the regex {regex!r} is found in none of the paths "
                    f"{paths.listed(map(repr, shapes))}. Correct it or leave it out."
                )
        return {path: 1.0 - self._sparsity_of(path, sparsity) for path in shapes}

    def _sparsity_of(self, path: str, sparsity: Any) -> Any:
        for regex, given in self.rules:
            if re.search(regex, path):
                return given if self.of is None else self._scaled(regex, given, sparsity)
        return sparsity

    def _scaled(self, regex: str, given: float, sparsity: Any) -> Any:
        scaled = given * sparsity / self.of if self.of else given
        if isinstance(scaled, float) and scaled >= 1.0:  # a traced one is not known here
            raise ValueError(
                f"per_layer: at sparsity {sparsity}, of={self.of} scales the {given} of {regex!r} "
                f"to {scaled}, which must stay below 1. Set of= to the final sparsity of the "
                "schedule."
            )
        return scaled


def per_layer(rules: Mapping[str, float], *, of: float | None = None) -> PerLayer:
    """Give layers their sparsity by name.

    ``density_l = 1 − rules[first regex found in path_l]``, and ``1 − sparsity`` where none is.

    Args:
      rules: sparsity in [0, 1) by regular expression. It is searched in the path; the first that
        is found wins, in the order of the mapping.
      of: the overall sparsity for which ``rules`` are meant. Each is scaled by ``sparsity / of``,
        so that a gradual schedule ramps to them; with None they hold from the first update on.

    Returns:
      The allocation.

    Raises:
      ValueError: a sparsity outside [0, 1), no rule or an invalid one. When it is called: a regex
        that is found in no path, or a scaled sparsity that reaches 1.
      TypeError: a sparsity that is not a number.

    Example:
      >>> from jaxprune import allocation
      >>> shapes = {"stem/kernel": (3, 3, 3, 8), "body/kernel": (64, 64), "head/kernel": (64, 8)}
      >>> allocation.per_layer({"stem": 0.0, "head": 0.5})(shapes, 0.75)
      {'stem/kernel': 1.0, 'body/kernel': 0.25, 'head/kernel': 0.5}
    """
    if not rules:
        raise ValueError(
            "rules must hold at least one {regex: sparsity}, got none. For one sparsity "
            "everywhere, use allocation.uniform."
        )
    for regex in rules:
        try:
            re.compile(regex)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"rules: {regex!r} is not a valid regular expression ({error}). "
                "A rule is {regex: sparsity}; the regex is searched in the path."
            ) from error
    checked = tuple((r, as_sparsity(f"rules[{r!r}]", given)) for r, given in rules.items())
    if of is not None and as_sparsity("of", of) == 0.0:
        raise ValueError(
            "of must be above 0, got 0.0: it is the overall sparsity for which rules are meant. "
            "Set it to the final sparsity of the schedule, or leave it out."
        )
    return PerLayer(checked, None if of is None else float(of))
