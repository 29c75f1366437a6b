"""Verdicts on published orders, from differences of means."""

from collections.abc import Mapping

from experiments.runner.statistics import Difference


def shown(differences: Mapping[str, Difference]) -> str:
    """Write differences in points, each with its label."""
    return "; ".join(f"{label}: {each.shown()}" for label, each in differences.items())


def is_better(differences: Mapping[str, Difference]) -> str:
    """Judge the claim that each difference is above zero."""
    above, below = _where(differences)
    if not differences:
        return "not run"
    if below:
        return f"not reproduced: the opposite at {', '.join(below)}"
    if len(above) == len(differences):
        return "reproduced"
    return f"reproduced at {', '.join(above)}; else noise" if above else "not reproduced: noise"


def is_no_worse(differences: Mapping[str, Difference]) -> str:
    """Judge the claim that no difference is below zero."""
    _, below = _where(differences)
    if not differences:
        return "not run"
    return f"not reproduced at {', '.join(below)}" if below else "reproduced"


def _where(differences: Mapping[str, Difference]) -> tuple[list[str], list[str]]:
    above = [label for label, each in differences.items() if each.above]
    below = [label for label, each in differences.items() if each.below]
    return above, below
