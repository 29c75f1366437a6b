"""What was published, beside what was measured."""

from collections.abc import Mapping

import numpy as np

from experiments.llm_oneshot.settings import RECOVERIES
from experiments.runner import claims
from experiments.runner.api import Claim, Results
from experiments.runner.statistics import Difference, difference, sample

WANDA = "Sun et al., arXiv:2306.11695"
OWL = "Yin et al., arXiv:2310.05175"
ECOFLAP = "Sung et al., arXiv:2310.02998"
PERP = "Zimmer et al., arXiv:2312.15230"
SFT = "Ansell et al., arXiv:2401.16405"

LABELS = {"50": "50%", "2-4": "2:4", "60": "60%"}
NAMES = {"perp": "PERP", "norms": "norms alone", "sft-ag": "SFT-AG", "sft-ma": "SFT-MA"}
LARGE = 0.5  # share of a gap that counts as a large part

NOTE = """\
Differences are of the loss, the logarithm of perplexity in nats, and positive where the claim
holds. The share of a gap is of the loss, too: what retraining gains, of what pruning lost against
the dense model; in brackets against the dense model that was trained alike, which is the fairer
one and decides where it was run.
"""


def claims_of(results: Results) -> list[Claim]:
    """Judge every claim by the cells that are there."""
    made = [
        _order("Wanda is better than magnitude", WANDA, results, "magnitude", "wanda", strict=True),
        _order(
            "SparseGPT is no worse than Wanda", WANDA, results, "wanda", "sparsegpt", strict=False
        ),
    ]
    for allocation, source, name in (("owl", OWL, "OWL"), ("ecoflap", ECOFLAP, "ECoFLaP")):
        found = _of_allocation(results, allocation)
        said = f"{name}'s allocation is no worse than the same sparsity everywhere, at 60%"
        made.append(Claim(said, source, _shown(found), claims.is_no_worse(found)))
    for kind in RECOVERIES:
        source = SFT if kind.startswith("sft") else PERP
        said = f"{NAMES[kind]} closes a large part of the gap, half of it or more"
        shares = {LABELS[p]: share for p in LABELS if (share := share_of(results, p, kind))}
        told = "; ".join(f"{label}: {_share(share)}" for label, share in shares.items())
        made.append(Claim(said, source, told, _closes(shares)))
    return made


def losses(results: Results, name: str) -> list[float] | None:
    """Return the losses of a cell, in nats, or None if it was not run."""
    result = results.get(name)
    return None if result is None else np.log(result.values["perplexity"]).tolist()


def share_of(results: Results, pattern: str, kind: str) -> tuple[float, float | None] | None:
    """Return the share of the gap that is closed: to the dense model, and to it trained alike."""
    names = (f"wanda-{pattern}", f"wanda-{pattern}-{kind}", "dense", f"dense-{kind}")
    before, after, dense, alike = (losses(results, name) for name in names)
    if before is None or after is None or dense is None:
        return None
    one, other, goal = (sample(values).mean for values in (before, after, dense))
    near = None
    if alike is not None:
        near = (one - other) / (one - sample(alike).mean)
    return (one - other) / (one - goal), near


def _order(
    said: str, source: str, results: Results, worse: str, better: str, *, strict: bool
) -> Claim:
    found = {}
    for pattern in ("50", "2-4"):
        one = _gain(results, f"{worse}-{pattern}", f"{better}-{pattern}")
        if one is not None:
            found[LABELS[pattern]] = one
    judge = claims.is_better if strict else claims.is_no_worse
    return Claim(said, source, _shown(found), judge(found))


def _of_allocation(results: Results, allocation: str) -> dict[str, Difference]:
    found = {}
    for method, label in (("wanda", "Wanda"), ("sparsegpt", "SparseGPT")):
        one = _gain(results, f"{method}-60", f"{allocation}-{method}-60")
        if one is not None:
            found[label] = one
    return found


def _gain(results: Results, before: str, after: str) -> Difference | None:
    """Return by how much the second cell's loss is lower."""
    one, other = losses(results, before), losses(results, after)
    return None if one is None or other is None else difference(other, one)


def _shown(found: Mapping[str, Difference]) -> str:
    return "; ".join(f"{label}: {each.shown(1.0, 3)}" for label, each in found.items())


def _share(share: tuple[float, float | None]) -> str:
    raw, alike = share
    return f"{100 * raw:.0f}%" + ("" if alike is None else f" ({100 * alike:.0f}%)")


def _closes(shares: Mapping[str, tuple[float, float | None]]) -> str:
    if not shares:
        return "not run"
    judged = {label: raw if near is None else near for label, (raw, near) in shares.items()}
    enough = [label for label, share in judged.items() if share >= LARGE]
    if len(enough) == len(judged):
        return "reproduced"
    return f"reproduced at {', '.join(enough)} alone" if enough else "not reproduced"
